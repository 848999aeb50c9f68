"""Freeing disk: intermediates of a study that nothing needs any more. A final model is never touched.

What goes: float32 masters of an intermediate model once everything that is made from it is there; intermediate models
of orderings that the study no longer lists; files that it no longer serves; scratch of finished steps. A model without
its masters is marked, and a later step that would start from them asks for it to be made again.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compression_assets.store.artifact_store import ArtifactStore, Manifest
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.study.leaderboard_models import served_models
from compression_assets.study.model import Study
from compression_assets.study.names import EXPORTED, TEACHER_MODEL, model_key, relative_directory
from compression_assets.weights.checkpoints import FREED, MASTERS

SCRATCH = ".scratch-"


@dataclass(frozen=True)
class Freed:
    """A directory that can go. kind: "masters", "model", "file" or "leftover".

    asset: of masters, whose manifest changes.
    """

    path: Path
    kind: str
    bytes: int
    why: str
    asset: str | None = None


def unneeded(study: Study, root: Path, readers: Mapping[str, Sequence[str]]) -> list[Freed]:
    """What `free` would remove, largest first. readers: asset -> assets with a directory of their own that read it.

    Raises StudyError for a damaged manifest.
    """
    store = artifacts_of(root)
    found = [*_masters(study, store, readers), *_orphans(study, store), *_leftovers(store)]
    return sorted(found, key=lambda freed: -freed.bytes)


def free(root: Path, freed: list[Freed]) -> int:
    """Remove what `unneeded` found, waiting for whoever is at work on it; bytes that are free now."""
    store = artifacts_of(root)
    for item in freed:
        directory = item.path.parent if item.asset else item.path
        # Scratch belongs to whoever makes its artifact anew, and that artifact's lock.
        directory = directory.with_name(directory.name.removeprefix(SCRATCH))
        with store.exclusive(directory, "clean"):
            if item.kind in ("model", "file"):
                store.remove(directory)
                continue
            if item.asset is not None:
                # Killed after this, the directory is whole, and found again next time.
                store.forget(directory, item.asset, MASTERS, FREED)
            if item.path.exists():  # or its step has ended and removed it
                shutil.rmtree(item.path)
    return sum(item.bytes for item in freed) + store.sweep()


def _masters(study: Study, store: ArtifactStore, readers: Mapping[str, Sequence[str]]) -> Iterator[Freed]:
    for node in study.nodes.values():
        asset = model_key(node)
        directory = store.root / relative_directory(asset)
        if node.final or node.parent is None:
            continue
        manifest = store.manifest(directory, asset)
        held = 0 if manifest is None else _masters_bytes(directory, manifest)
        if not held:
            continue
        missing = [child for child in readers.get(asset, []) if not _is_made(store, child, asset)]
        if not missing:
            yield Freed(
                directory / MASTERS,
                "masters",
                held,
                f"everything that is made from {asset} is there",
                asset,
            )


def _is_made(store: ArtifactStore, child: str, parent: str) -> bool:
    """Whether `child` is there and was made from what `parent` is now."""
    made = store.manifest(store.root / relative_directory(child), child)
    source = store.manifest(store.root / relative_directory(parent), parent)
    if made is None or source is None or made.failed_checks:
        return False
    return made.inputs.get(str(relative_directory(parent))) == source.data_version


def _orphans(study: Study, store: ArtifactStore) -> Iterator[Freed]:
    listed = {relative_directory(model_key(node)) for node in study.nodes.values()}
    listed |= {relative_directory(served.model) for served in served_models(study)}
    listed.add(relative_directory(TEACHER_MODEL))
    for directory in store.directories():
        folder = directory.parent.name
        if folder not in ("models", EXPORTED) or directory.relative_to(store.root) in listed:
            continue
        manifest = store.manifest(directory, directory.name)
        if manifest is None:
            continue
        if folder == EXPORTED:
            yield Freed(directory, "file", manifest.total_bytes, "a file that the study does not serve")
        elif manifest.asset.startswith("model_"):
            yield Freed(
                directory, "model", manifest.total_bytes, "an intermediate of no ordering of the study"
            )


def _leftovers(store: ArtifactStore) -> Iterator[Freed]:
    """Scratch of finished steps. What killed processes left of others, the next step there removes or goes on from."""
    for path in sorted(store.root.glob(f"*/{SCRATCH}*")):
        if (path.parent / path.name.removeprefix(SCRATCH)).is_dir():
            yield Freed(path, "leftover", _size(path), "scratch of a finished step")


def _masters_bytes(directory: Path, manifest: Manifest) -> int:
    """Also of a directory that the manifest has forgotten, where cleaning was killed before it was removed."""
    named = sum(record.bytes for name, record in manifest.files.items() if name.startswith(f"{MASTERS}/"))
    return named or _size(directory / MASTERS)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def as_text(freed: list[Freed], root: Path, dry_run: bool) -> str:
    """One line a directory, and the sum."""
    verb = "would free" if dry_run else "freed"
    lines = [
        f"{verb} {item.bytes / 2**20:10,.1f} MiB  {item.path.relative_to(root)}: {item.why}" for item in freed
    ]
    total = sum(item.bytes for item in freed)
    return "\n".join([*lines, f"{verb} {total / 2**20:,.1f} MiB in {len(freed)} directories"])
