"""Directories that are either complete or absent, each with a manifest of what made it.

Models, data sets, teacher logits and measurements are all artifacts. What is inside one is the
business of whoever writes it; this module only knows files, hashes and manifests.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError, next_command
from compression_assets.machine.locks import Waiting, locked, try_lock
from compression_assets.store.fingerprints import file_sha256, fingerprint

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
_BUILDING = ".building-"
_REPLACED = ".replaced-"
_SCRATCH = ".scratch-"
_LOCKS = ".locks"


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact. Its times let an unchanged file be recognised without reading it."""

    bytes: int
    sha256: str
    mtime_ns: int
    ctime_ns: int = 0


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what made it; written last, so its presence means 'complete'.

    fingerprint: hash of everything that decides the content (recipe, code, library versions, seed,
    data versions of the inputs). data_version: hash of the content itself.
    parent: asset key of the model it was made from, if any. seconds, peak_memory_bytes: of the step.
    checks: list of {name, passed, detail, blocking}. metadata: whatever the step reported (JSON).
    """

    asset: str
    fingerprint: str
    data_version: str
    files: dict[str, FileRecord]
    created_at: str
    parent: str | None = None
    technique: str | None = None
    path: list[str] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_fingerprint: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    device: str | None = None
    tokens_seen: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    checks: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    manifest_version: int = MANIFEST_VERSION

    @property
    def total_bytes(self) -> int:
        return sum(record.bytes for record in self.files.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the published weights of a model; its float32 masters are in a directory of their own."""
        return sum(
            record.bytes
            for name, record in self.files.items()
            if "/" not in name and name.endswith(".safetensors")
        )

    @property
    def failed_checks(self) -> list[str]:
        """Names of the integrity checks that failed; a failed quality check is a warning only."""
        return [check["name"] for check in self.checks if check["blocking"] and not check["passed"]]


def _say_nothing(holder: str) -> None:
    """For whoever does not care what is waited for."""


class ArtifactStore:
    """Artifacts of one study under `root`, as <root>/<kind>/<name>."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def directory(self, kind: str, name: str) -> Path:
        return self.root / kind / name

    def manifest(self, directory: Path, asset: str) -> Manifest | None:
        """The manifest of a complete artifact, None where there is no artifact.

        Raises StudyError for a directory without a readable manifest: it was not written by this store.
        asset: what the directory is to hold, for the sentence.
        """
        if not directory.exists():
            return None
        try:
            raw = json.loads((directory / MANIFEST).read_text())
            files = {name: FileRecord(**record) for name, record in raw.pop("files").items()}
            return Manifest(files=files, **raw)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StudyError(
                f"{directory} is damaged: its {MANIFEST} cannot be read ({error}); {_rebuild_hint(asset)}"
            ) from error

    def damage(self, directory: Path, manifest: Manifest, *, thorough: bool) -> str | None:
        """What is wrong with an artifact's files, in a few words, or None.

        thorough=False reads a file only when its size or times are not the manifest's. What anybody writes to a file
        moves its ctime, which nothing can set back; for masters/, as large as all else together, mtime is enough.
        """
        for name, record in manifest.files.items():
            file = directory / name
            if not file.is_file():
                return f"{name} is missing"
            stat = file.stat()
            if stat.st_size != record.bytes:
                return f"{name} has {stat.st_size:,} bytes, its manifest says {record.bytes:,}"
            same_content = stat.st_mtime_ns == record.mtime_ns
            untouched = same_content and stat.st_ctime_ns == record.ctime_ns
            if not thorough and (untouched or (same_content and name.startswith("masters/"))):
                continue
            if (found := file_sha256(file)) != record.sha256:
                return f"{name} has sha256 {found[:12]}…, its manifest says {record.sha256[:12]}…"
        return None

    def finished(self, directory: Path, wanted: str, asset: str) -> Manifest | None:
        """The manifest if this artifact was made by exactly `wanted` (a fingerprint) and passed its checks.

        Raises StudyError when its files no longer are what the manifest says.
        """
        manifest = self.manifest(directory, asset)
        if manifest is None or manifest.fingerprint != wanted or manifest.failed_checks:
            return None
        self._refuse_damage(directory, manifest, asset, thorough=False)
        shutil.rmtree(_scratch_root(directory), ignore_errors=True)
        return manifest

    def require(self, directory: Path, asset: str, needed_by: str, *, verify: bool = True) -> Manifest:
        """The manifest of an input. Raises StudyError when it is missing, damaged or failed its checks."""
        manifest = self.manifest(directory, asset)
        if manifest is None:
            raise StudyError(
                f"{needed_by} needs {asset}, which is not built yet; build it and all it needs with: "
                + next_command("run", "--select", f"*{asset}")
            )
        if manifest.failed_checks:
            raise StudyError(
                f"{needed_by} needs {asset}, which failed its check {manifest.failed_checks[0]}; "
                f"see {directory / MANIFEST}, then build it again with: "
                + next_command("run", "--select", asset)
            )
        if verify:
            self._refuse_damage(directory, manifest, asset, thorough=True)
        return manifest

    def _refuse_damage(self, directory: Path, manifest: Manifest, asset: str, *, thorough: bool) -> None:
        if problem := self.damage(directory, manifest, thorough=thorough):
            raise StudyError(f"{directory} is damaged: {problem}; {_rebuild_hint(asset)}")

    @contextmanager
    def exclusive(
        self, directory: Path, asset: str, inputs: Iterable[Path] = (), waiting: Waiting = _say_nothing
    ) -> Iterator[None]:
        """Nobody else makes this artifact, or makes one of its inputs again, until the end of this context.

        asset: who holds the locks, for whoever waits for them. waiting: told what this call itself waits for. What a
        killed process left of this or another artifact is removed first. An artifact is locked before its inputs, and
        inputs are made by nobody who holds an artifact that needs them, so two processes never wait for each other.
        """
        with ExitStack() as held:
            held.enter_context(locked(self._lock(directory), asset, waiting))
            for path in inputs:
                held.enter_context(locked(self._lock(path), asset, waiting, shared=True))
            self._remove_leftovers(directory)
            yield

    def scratch(self, directory: Path, wanted: str) -> Path:
        """A directory for what an attempt at `wanted` wants to find again if it is killed; `publish` removes it.

        Those of other attempts at the same artifact are removed here: nothing will ask for them again.
        """
        everyone = _scratch_root(directory)
        own = everyone / wanted[:16]
        for other in everyone.glob("*"):
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
        own.mkdir(parents=True, exist_ok=True)
        return own

    @contextmanager
    def building(self, directory: Path) -> Iterator[Path]:
        """A temporary directory beside `directory`; the caller, inside `exclusive`, fills it and calls `publish`.

        It is removed on any error.
        """
        work = directory.parent / f"{_BUILDING}{directory.name}"
        work.mkdir(parents=True)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def publish(self, work: Path, directory: Path, **about: Any) -> Manifest:
        """Hash the files of `work`, write the manifest, and rename it to `directory`.

        about: the fields of Manifest other than files and data_version.
        """
        files = {str(file.relative_to(work)): _record(file) for file in _files(work)}
        version = fingerprint({name: record.sha256 for name, record in files.items()})
        manifest = Manifest(files=files, data_version=version, **about)
        text = json.dumps(asdict(manifest), indent=2, allow_nan=False)
        _write_durably(work / MANIFEST, text)
        _replace(work, directory)
        shutil.rmtree(_scratch_root(directory), ignore_errors=True)
        return manifest

    def forget(self, directory: Path, asset: str, folder: str) -> None:
        """Take the files of a folder out of an artifact's manifest; the caller, inside `exclusive`, removes them.

        data_version stays: it says what was made, and what was made from it is still valid.
        """
        manifest = self.manifest(directory, asset)
        if manifest is None:
            return
        kept = {name: record for name, record in manifest.files.items() if not name.startswith(f"{folder}/")}
        text = json.dumps(asdict(replace(manifest, files=kept)), indent=2, allow_nan=False)
        fresh = directory / f".{MANIFEST}"
        _write_durably(fresh, text)
        os.replace(fresh, directory / MANIFEST)

    def _remove_leftovers(self, directory: Path) -> None:
        """Remove what killed processes left beside an artifact whose lock is held.

        An artifact that was being replaced when its process was killed is put back if nothing took its place.
        """
        folder = directory.parent
        for path in [*folder.glob(f"{_REPLACED}*"), *folder.glob(f"{_BUILDING}*")]:
            original = folder / path.name.removeprefix(_REPLACED).removeprefix(_BUILDING).partition(".")[0]
            with ExitStack() as held:
                if original != directory:
                    lock = try_lock(self._lock(original), "cleaning up")
                    if lock is None:  # somebody is at work there
                        continue
                    held.enter_context(lock)
                if path.name.startswith(_REPLACED) and not original.exists():
                    path.rename(original)
                else:
                    shutil.rmtree(path, ignore_errors=True)

    def _lock(self, directory: Path) -> Path:
        return self.root / _LOCKS / ".".join(directory.relative_to(self.root).parts)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)


def _record(file: Path) -> FileRecord:
    stat = file.stat()
    return FileRecord(
        bytes=stat.st_size, sha256=file_sha256(file), mtime_ns=stat.st_mtime_ns, ctime_ns=stat.st_ctime_ns
    )


def _write_durably(file: Path, text: str) -> None:
    with file.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def _replace(work: Path, directory: Path) -> None:
    replaced = directory.parent / f"{_REPLACED}{directory.name}"
    if directory.exists():
        directory.rename(replaced)
    work.rename(directory)
    shutil.rmtree(replaced, ignore_errors=True)


def _scratch_root(directory: Path) -> Path:
    return directory.parent / f"{_SCRATCH}{directory.name}"


def _rebuild_hint(asset: str) -> str:
    return f"rebuild it with: {next_command('rebuild', asset)}"
