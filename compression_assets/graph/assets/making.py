"""One way to make any artifact: recognise finished work, lease a device, build aside, publish, report.

What is inside its directory is up to its `build`.
"""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg

from compression_assets.errors import StudyError
from compression_assets.graph.assets.artifact import Artifact, BuildContext
from compression_assets.graph.cluster.handover import join_the_run
from compression_assets.graph.resources import Gpu, StudyStorage
from compression_assets.machine.lease import Lease
from compression_assets.machine.runtime import prepare_process
from compression_assets.machine.workers import die_with_the_run
from compression_assets.store.artifact_store import ArtifactStore, Manifest
from compression_assets.store.fingerprints import file_sha256, fingerprint, library_versions
from compression_assets.store.object_store import Superseded
from compression_assets.store.reports import MISSING, Report, StepReport
from compression_assets.store.write_errors import storage_problem
from compression_assets.study.names import relative_directory

LOG_EVERY = 20
"""One log line for so many progress events (about one a second), so that logs stay readable."""


@dataclass(frozen=True)
class Step:
    """The step of a run that makes artifacts. shared: see BuildContext."""

    context: dg.AssetExecutionContext
    storage: StudyStorage
    gpu: Gpu
    shared: dict[str, Any] = field(default_factory=dict)

    def make(self, artifact: Artifact, rebuild: bool = False) -> tuple[Manifest, bool]:
        """Make an artifact unless the same one is there already: (its manifest, whether it was there).

        Raises dagster.Failure with one sentence for a user's mistake, a missing or damaged input, a full disk.
        """
        with tracked(self.context, self.storage, artifact.asset) as outcome:
            manifest, cached = _find_or_build(self, artifact, rebuild)
            outcome.update(cached=cached, note=str(manifest.metadata.get("summary", "")))
        return manifest, cached

    def make_if_missing(self, artifact: Artifact, needed_by: str) -> None:
        """Make an artifact that a selection such as '*final_p_kd_q*' does not cover, and say so in Dagster's history.

        The ancestors of a model are not those of what measures it: the evaluation set, the questions and the judge's
        own test stand beside its line. Without this, a selection of models in a new storage would build them and then
        not measure them. One that is there is left as it is.
        """
        directory = self.storage.artifacts.root / relative_directory(artifact.asset)
        with as_failure(artifact.asset):
            if self.storage.artifacts.manifest(directory, artifact.asset) is not None:
                return
        manifest, _ = self.make(artifact)
        self.context.log_event(
            dg.AssetMaterialization(
                key_of(self.context, artifact.asset),
                description=f"Made by {needed_by}, which needs it.",
                metadata={"path": dg.MetadataValue.path(self.storage.artifacts.location(directory))},
                tags={"dagster/data_version": manifest.data_version},
            )
        )


def key_of(context: dg.AssetExecutionContext, asset: str) -> dg.AssetKey:
    """The key of another asset of the study that this step is of: whatever project they are in has prefixed both."""
    own = next(iter(context.selected_asset_keys))
    return dg.AssetKey([*own.path[:-1], asset])


@contextmanager
def tracked(context: dg.AssetExecutionContext, storage: StudyStorage, asset: str) -> Iterator[dict[str, Any]]:
    """Progress events around a piece of work, and its errors in a sentence; what is put into the dict is shown."""
    die_with_the_run()
    prepare_process()
    progress = storage.progress(context.run_id)
    outcome: dict[str, Any] = {}
    try:
        with as_failure(asset):
            join_the_run()
            progress.event(asset, "started")
            yield outcome
            progress.event(asset, "finished", **outcome)
    except BaseException:
        # The error itself counts, and a full disk takes no event either.
        with suppress(OSError):
            progress.event(asset, "failed")
        raise


def _find_or_build(step: Step, artifact: Artifact, rebuild: bool) -> tuple[Manifest, bool]:
    context, storage = step.context, step.storage
    store = storage.artifacts
    directory = store.root / relative_directory(artifact.asset)
    inputs = {asset: store.root / relative_directory(asset) for asset in artifact.inputs}
    report = _reporter(context, artifact.asset, storage)

    def waiting(what: str) -> None:
        context.log.info(f"{artifact.asset} waits for {what}")
        report(0, 1, f"waits for {what}")

    with store.exclusive(directory, artifact.asset, inputs.values(), waiting):
        versions = _versions(artifact, inputs, store)
        wanted = _wanted(artifact, versions)
        manifest = None if rebuild else store.finished(directory, wanted, artifact.asset)
        if manifest and not manifest.metadata.get(MISSING):
            context.log.info(f"{artifact.asset} is unchanged since {manifest.created_at}")
            return replace(manifest, asset=artifact.asset, parent=artifact.parent), True
        for asset, path in inputs.items():
            store.local(path, asset)  # before a device is leased, which would wait for the transfer
        memory = artifact.memory
        expected = (lambda device: memory(inputs, device)) if memory else (lambda device: None)
        with step.gpu.lease(artifact.asset, expected, waiting, artifact.uses_device, artifact.gpus) as lease:
            for asset, path in inputs.items():
                store.require(path, asset, artifact.asset)
            with store.building(directory) as work, store.attempt(directory, wanted) as scratch:
                place = BuildContext(
                    output=work,
                    scratch=scratch,
                    inputs=inputs,
                    device=lease.device,
                    devices=lease.devices,
                    report=report,
                    storage=storage,
                    run_id=context.run_id,
                    shared=step.shared,
                )
                said = artifact.build(place)
                _refuse_unreported(artifact, said)
                about = _about(artifact, wanted, versions, said)
                about["metadata"] |= lease.about()
                try:
                    return store.publish(work, directory, **about, **_used(lease, said)), False
                except Superseded:
                    # Of a host that was cut off and lived on, and the one that did its work anew, the first counts.
                    if (other := store.finished(directory, wanted, artifact.asset)) is None:
                        raise
                    context.log.warning(
                        f"{artifact.asset} was made elsewhere meanwhile, and that one is taken"
                    )
                    return other, True


def _used(lease: Lease, said: StepReport) -> dict[str, Any]:
    """Device, seconds and peak memory of a step: its own, or that of a process which it started."""
    used = lease.so_far()
    return used | {"peak_memory_bytes": max(int(used["peak_memory_bytes"]), said.peak_bytes)}


def _versions(artifact: Artifact, inputs: Mapping[str, Path], store: ArtifactStore) -> dict[str, str]:
    """Data versions of the inputs. By directory, not by key: a model that an ordering comes to end in is the same."""
    return {
        str(relative_directory(asset)): store.require(path, asset, artifact.asset, verify=False).data_version
        for asset, path in inputs.items()
    }


def _wanted(artifact: Artifact, versions: Mapping[str, str]) -> str:
    """The fingerprint that the artifact has to have."""
    return fingerprint(
        {
            "code_version": artifact.code_version,
            "inputs": versions,
            "libraries": library_versions(),
            "sources": _contents(artifact.sources),
        }
    )


def _refuse_unreported(artifact: Artifact, step: StepReport) -> None:
    if missing := {*artifact.checks, *artifact.warnings} - {check.name for check in step.checks}:
        raise RuntimeError(f"{artifact.asset} did not report its checks {sorted(missing)}")


def _about(artifact: Artifact, wanted: str, versions: Mapping[str, str], step: StepReport) -> dict[str, Any]:
    """Fields of the manifest."""
    return {
        "asset": artifact.asset,
        "fingerprint": wanted,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "parent": artifact.parent,
        "technique": artifact.technique,
        "path": list(artifact.path),
        "recipe": dict(artifact.settings),
        "recipe_fingerprint": fingerprint(artifact.settings),
        "inputs": versions,
        "seed": artifact.seed,
        "libraries": library_versions(),
        "git_revision": _git_revision(),
        "tokens_seen": step.tokens_seen,
        "checks": [asdict(check) for check in step.checks],
        "metadata": dict(step.metadata),
    }


def _contents(sources: tuple[Any, ...]) -> dict[str, str]:
    from compression_assets.sources.local import local_files

    # By place: two sources may have files of the same name.
    return {
        f"{place}/{file.name}": file_sha256(file)
        for place, source in enumerate(sources)
        for file in local_files(source)
    }


def _reporter(context: dg.AssetExecutionContext, asset: str, storage: StudyStorage) -> Report:
    progress = storage.progress(context.run_id)
    recorded = 0

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal recorded
        if not progress.working(asset, done, total, note):
            return
        if recorded % LOG_EVERY == 0 or done >= total:
            context.log.info(f"{asset}: {done:,} of {total:,} {note}")
        recorded += 1

    return report


@contextmanager
def as_failure(asset: str) -> Iterator[None]:
    """Turn a user's mistake or a full disk into a dagster.Failure of one sentence."""
    try:
        yield
    except StudyError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    except OSError as error:
        if (sentence := storage_problem(error)) is None:
            raise
        raise dg.Failure(f"{asset} could not be written: {sentence}", allow_retries=False) from error


@cache
def _git_revision() -> str | None:
    """The revision of the code, with '+' when the tree has changes; None outside a repository."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+" if changes else "")
