"""Directories that are either complete or absent, each with a manifest of what made it.

Models, data sets, teacher logits and measurements are all artifacts. What is inside one is the
business of whoever writes it; this module only knows files, hashes and manifests.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError, next_command
from compression_assets.machine.locks import Waiting, locked, try_lock
from compression_assets.store.fingerprints import fingerprint
from compression_assets.store.manifests import MANIFEST as MANIFEST
from compression_assets.store.manifests import Manifest as Manifest
from compression_assets.store.manifests import (
    damage,
    files_of,
    keep_times,
    read_manifest,
    record_of,
    without,
    write_durably,
)

_BUILDING = ".building-"
_REPLACED = ".replaced-"
_SCRATCH = ".scratch-"
_LOCKS = ".locks"
_TIMES = ".times"


def say_nothing(holder: str) -> None:
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
            return read_manifest((directory / MANIFEST).read_text())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StudyError(
                f"{directory} is damaged: its {MANIFEST} cannot be read ({error}); {rebuild_hint(asset)}"
            ) from error

    def damage(self, directory: Path, manifest: Manifest, *, thorough: bool) -> str | None:
        """What is wrong with an artifact's files, in a few words, or None; as `manifests.damage`."""
        return damage(directory, manifest, self._times(directory), thorough=thorough)

    def local(self, directory: Path, asset: str) -> Path | None:
        """The directory once its files are on this disk; None where there is no artifact. asset: for an error."""
        return directory if directory.exists() else None

    def needed(self, directory: Path, asset: str, needed_by: str) -> Path:
        """The same of an artifact that has to be there. Raises StudyError as `require` does; its files are not read."""
        self.require(directory, asset, needed_by, verify=False)
        found = self.local(directory, asset)
        assert found is not None
        return found

    def manifests(self) -> tuple[dict[str, Manifest], dict[str, str]]:
        """The manifest of every artifact, and why others cannot be read, by directory below `root`."""
        found, damaged = {}, {}
        for directory in self.directories():
            name = str(directory.relative_to(self.root))
            try:
                manifest = self.manifest(directory, directory.name)
            except StudyError as error:
                damaged[name] = str(error)
                continue
            if manifest is not None:
                found[name] = manifest
        return found, damaged

    def directories(self) -> list[Path]:
        """Those of all artifacts, sorted."""
        found = [file.parent for file in self.root.glob(f"*/*/{MANIFEST}")]
        return sorted(directory for directory in found if not directory.name.startswith("."))

    def versions(self, directories: Iterable[Path]) -> dict[str, str]:
        """What changes whenever one of these artifacts is published, by artifact; absent ones have none."""
        found = {}
        for directory in directories:
            with suppress(FileNotFoundError):
                stat = (directory / MANIFEST).stat()
                found[str(directory)] = f"{stat.st_mtime_ns} {stat.st_size}"
        return found

    def location(self, directory: Path, file: str | None = None) -> str:
        """Where an artifact is, or one of its files, for people: a path, or a URI of the store that hosts share."""
        return str(directory if file is None else directory / file)

    def finished(self, directory: Path, wanted: str, asset: str) -> Manifest | None:
        """The manifest if this artifact was made by exactly `wanted` (a fingerprint) and passed its checks.

        Raises StudyError when its files no longer are what the manifest says.
        """
        manifest = self.manifest(directory, asset)
        if manifest is None or manifest.fingerprint != wanted or manifest.failed_checks:
            return None
        self._refuse_damage(directory, manifest, asset, thorough=False)
        self._drop_scratch(directory)
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
                f"see {self.location(directory, MANIFEST)}, then build it again with: "
                + next_command("run", "--select", asset)
            )
        if verify:
            self._refuse_damage(directory, manifest, asset, thorough=True)
        return manifest

    def _refuse_damage(self, directory: Path, manifest: Manifest, asset: str, *, thorough: bool) -> None:
        if problem := self.damage(directory, manifest, thorough=thorough):
            raise StudyError(f"{directory} is damaged: {problem}; {rebuild_hint(asset)}")

    @contextmanager
    def exclusive(
        self, directory: Path, asset: str, inputs: Iterable[Path] = (), waiting: Waiting = say_nothing
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
        everyone = scratch_root(directory)
        own = everyone / wanted[:16]
        for other in everyone.glob("*"):
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
        own.mkdir(parents=True, exist_ok=True)
        return own

    @contextmanager
    def attempt(self, directory: Path, wanted: str) -> Iterator[Path]:
        """The scratch of an attempt at `wanted`, while it is at work."""
        yield self.scratch(directory, wanted)

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
        manifest = sealed(work, **about)
        self._place(work, directory, manifest)
        self._drop_scratch(directory)
        return manifest

    def _place(self, work: Path, directory: Path, manifest: Manifest) -> None:
        """Let a complete directory take the place of `directory`."""
        replaced = directory.parent / f"{_REPLACED}{directory.name}"
        if directory.exists():
            directory.rename(replaced)
        work.rename(directory)
        keep_times(directory, manifest, self._times(directory))
        shutil.rmtree(replaced, ignore_errors=True)

    def forget(self, directory: Path, asset: str, folder: str, mark: str) -> None:
        """Take the files of a folder out of an artifact's manifest; the caller, inside `exclusive`, removes them.

        mark: name of the file that says so to whoever looks for them, with the asset's key in it. data_version stays:
        it says what was made, and what was made from it is still valid.
        """
        manifest = self.manifest(directory, asset)
        if manifest is None:
            return
        write_durably(directory / mark, f"{asset}\n")
        fresh = directory / f".{MANIFEST}"
        write_durably(fresh, without(manifest, folder, mark, record_of(directory / mark)).as_text())
        os.replace(fresh, directory / MANIFEST)

    def sweep(self) -> int:
        """Remove what no artifact has any more from where hosts share them; bytes that are free now."""
        return 0

    def remove(self, directory: Path) -> None:
        """Remove an artifact; the caller holds it by `exclusive`."""
        shutil.rmtree(directory, ignore_errors=True)

    def _drop_scratch(self, directory: Path) -> None:
        shutil.rmtree(scratch_root(directory), ignore_errors=True)

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

    def _times(self, directory: Path) -> Path:
        return self.root / _TIMES / ".".join(directory.relative_to(self.root).parts)


def sealed(work: Path, **about: Any) -> Manifest:
    """The manifest of what is in `work`, which is written into it. about: as for `ArtifactStore.publish`."""
    files = {str(file.relative_to(work)): record_of(file) for file in files_of(work)}
    version = fingerprint({name: record.sha256 for name, record in files.items()})
    manifest = Manifest(files=files, data_version=version, **about)
    write_durably(work / MANIFEST, manifest.as_text())
    return manifest


def scratch_root(directory: Path) -> Path:
    return directory.parent / f"{_SCRATCH}{directory.name}"


def rebuild_hint(asset: str) -> str:
    return f"rebuild it with: {next_command('rebuild', asset)}"
