"""One way to make any artifact: recognise finished work, lease a device, build aside, publish, report.

Every asset that leaves a directory goes through `make`; what is inside the directory is up to its `build`.
"""

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg

from compression_assets.errors import StudyError
from compression_assets.graph.resources.gpu import Gpu
from compression_assets.graph.resources.storage import StudyStorage
from compression_assets.machine.workers import die_with_the_run
from compression_assets.store.artifact_store import ArtifactStore, Manifest
from compression_assets.store.code_fingerprints import code_fingerprint
from compression_assets.store.fingerprints import file_sha256, fingerprint, library_versions
from compression_assets.store.reports import Check, Report, StepReport
from compression_assets.store.write_errors import storage_problem
from compression_assets.study.names import relative_directory

LOG_EVERY = 20
"""One log line for so many progress events (about one a second), so that logs stay readable."""


class ArtifactConfig(dg.Config):
    """Operational knobs; scientific settings live in the study file."""

    rebuild: bool = False


@dataclass(frozen=True)
class Artifact:
    """What an asset is made of. settings, code and the inputs' content decide whether it must be made again.

    asset: its key. settings: JSON of everything in the study that its content depends on. code: what makes it, a module
    or several "module:name". inputs: asset keys it reads. checks: names of its integrity checks,
    which stop a run when they fail; warnings: names of its quality checks, which do not.
    sources: model or chat sources that it reads; the content of those on this machine counts as well.
    needs: what it is expected to take of a device's memory, told from the inputs' directories; None: not known.
    computes: whether it has any use for a GPU; one that only fetches or asks takes none from others.
    """

    asset: str
    settings: Mapping[str, Any]
    code: str | tuple[str, ...]
    inputs: tuple[str, ...] = ()
    seed: int | None = None
    parent: str | None = None
    technique: str | None = None
    path: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sources: tuple[Any, ...] = ()
    needs: "MemoryNeeds | None" = None
    computes: bool = True

    @property
    def code_version(self) -> str:
        """Changes with the settings and the code, not with the inputs (Dagster tracks those itself)."""
        roots = (self.code,) if isinstance(self.code, str) else self.code
        return fingerprint({"settings": self.settings, "code": code_fingerprint(*roots), "seed": self.seed})[
            :16
        ]

    def check_specs(self) -> list[dg.AssetCheckSpec]:
        blocking = [dg.AssetCheckSpec(name, asset=self.asset, blocking=True) for name in self.checks]
        return blocking + [dg.AssetCheckSpec(name, asset=self.asset) for name in self.warnings]


@dataclass(frozen=True)
class Workplace:
    """Where a build works: an empty `output`, its `inputs` (asset -> directory), a device, a way to report.

    scratch: a directory that survives a killed attempt at the same artifact, and is removed once that is made.
    """

    output: Path
    scratch: Path
    inputs: Mapping[str, Path]
    device: str
    report: Report


Build = Callable[[Workplace], StepReport]
MemoryNeeds = Callable[[Mapping[str, Path], str], int | None]
"""Peak bytes of a step from its inputs (asset -> directory) on a device ("cpu" or "cuda"); see `memory`."""


def make(
    context: dg.AssetExecutionContext,
    artifact: Artifact,
    build: Build,
    storage: StudyStorage,
    gpu: Gpu,
    rebuild: bool = False,
) -> tuple[Manifest, bool]:
    """Make an artifact unless the same one is there already: (its manifest, whether it was there).

    Raises dagster.Failure with one sentence for a user's mistake, a missing or damaged input, a full disk.
    """
    with tracked(context, storage, artifact.asset) as outcome:
        manifest, cached = _find_or_build(context, artifact, build, storage, gpu, rebuild)
        outcome.update(cached=cached, note=str(manifest.metadata.get("summary", "")))
    return manifest, cached


@contextmanager
def tracked(context: dg.AssetExecutionContext, storage: StudyStorage, asset: str) -> Iterator[dict[str, Any]]:
    """Progress events around a piece of work, and its errors in a sentence; what is put into the dict is shown."""
    die_with_the_run()
    progress = storage.progress(context.run_id)
    outcome: dict[str, Any] = {}
    try:
        with as_failure(asset):
            progress.event(asset, "started")
            yield outcome
            progress.event(asset, "finished", **outcome)
    except BaseException:
        # The error itself counts, and a full disk takes no event either.
        with suppress(OSError):
            progress.event(asset, "failed")
        raise


def result(
    manifest: Manifest, cached: bool, directory: Path, more_checks: Sequence[Check] = (), **metadata: Any
) -> dg.MaterializeResult:
    """The materialisation of an artifact, with the figures that every artifact has."""
    checks = [
        dg.AssetCheckResult(
            asset_key=manifest.asset,
            check_name=check["name"],
            passed=check["passed"],
            severity=dg.AssetCheckSeverity.ERROR if check["blocking"] else dg.AssetCheckSeverity.WARN,
            metadata={"detail": dg.MetadataValue.text(check["detail"])},
        )
        for check in [*manifest.checks, *map(asdict, more_checks)]
    ]
    return dg.MaterializeResult(
        asset_key=manifest.asset,
        data_version=dg.DataVersion(manifest.data_version),
        check_results=checks,
        metadata={
            "path": dg.MetadataValue.path(str(directory)),
            **metadata,
            "directory_mib": round(manifest.total_bytes / 2**20, 2),
            "seconds": round(manifest.seconds, 1),
            "peak_memory_mib": round(manifest.peak_memory_bytes / 2**20),
            "tokens_seen": manifest.tokens_seen,
            "device": manifest.device or "",
            "cached": cached,
            "made_at": manifest.created_at,
            "fingerprint": manifest.fingerprint,
        },
    )


def _find_or_build(
    context: dg.AssetExecutionContext,
    artifact: Artifact,
    build: Build,
    storage: StudyStorage,
    gpu: Gpu,
    rebuild: bool,
) -> tuple[Manifest, bool]:
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
        if not rebuild and (manifest := store.finished(directory, wanted, artifact.asset)):
            context.log.info(f"{artifact.asset} is unchanged since {manifest.created_at}")
            return replace(manifest, asset=artifact.asset, parent=artifact.parent), True
        needs = artifact.needs
        expected = (lambda device: needs(inputs, device)) if needs else (lambda device: None)
        with gpu.lease(artifact.asset, expected, waiting, artifact.computes) as lease:
            for asset, path in inputs.items():
                store.require(path, asset, artifact.asset)
            with store.building(directory) as work:
                place = Workplace(work, store.scratch(directory, wanted), inputs, lease.device, report)
                step = build(place)
                _refuse_unreported(artifact, step)
                about = _about(artifact, wanted, versions, step)
                about["metadata"] |= lease.about()
                return store.publish(work, directory, **about, **lease.so_far()), False


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
