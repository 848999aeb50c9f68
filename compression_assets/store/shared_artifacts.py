"""Artifacts that several hosts share: the truth is in an object store, a study's local directory is a cache of it.

<study>/artifacts/<kind>/<name>.json is a manifest, <study>/blobs/<sha256> the content of a file of any number of them.
Blobs go first and the manifest last, under the condition that it still is what it was when its lock was taken: so an
artifact is complete or absent, and of two hosts that make the same one, whatever became of their locks, one is told.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.machine.locks import Waiting, locked, try_lock
from compression_assets.machine.shared_locks import VARIABLE as PG
from compression_assets.machine.shared_locks import shared_locks
from compression_assets.store.artifact_store import ArtifactStore, rebuild_hint, say_nothing, sealed
from compression_assets.store.cache_eviction import evict
from compression_assets.store.manifests import (
    MANIFEST,
    Manifest,
    read_manifest,
    record_of,
    without,
    write_durably,
)
from compression_assets.store.object_store import ObjectStore, store_of
from compression_assets.store.shared_scratch import SharedScratch

ARTIFACTS, BLOBS = "artifacts", "blobs"
FILES_AT_ONCE = 4
_FETCHING = ".fetching-"


def artifacts_of(root: Path) -> ArtifactStore:
    """The artifacts of a study: shared where COMPRESSION_STORE names an object store. root: the study's directory."""
    remote = store_of(Path(root))
    return ArtifactStore(root) if remote is None else SharedArtifacts(root, remote)


class SharedArtifacts(ArtifactStore):
    """ArtifactStore whose artifacts are those of `remote`, the part of an object store that is the study's."""

    def __init__(self, root: Path, remote: ObjectStore):
        super().__init__(root)
        self.remote = remote
        self._expected: dict[Path, str | None] = {}

    def manifest(self, directory: Path, asset: str) -> Manifest | None:
        found = self.remote.read(self._key(directory))
        return None if found is None else self._read(directory, found[0].decode(), asset)

    def local(self, directory: Path, asset: str) -> Path | None:
        """Fetch what this host does not have yet, or has no more as the manifest says, and check it.

        Raises StudyError when a file cannot be had as the manifest says it is.
        """
        found = self.remote.read(self._key(directory))
        if found is None:
            return None
        text = found[0].decode()
        manifest = self._read(directory, text, asset)
        with locked(self._fetch_lock(directory), asset, say_nothing):
            missing = not self._is_cached(directory, text)
            if missing or self.damage(directory, manifest, thorough=False):
                self._fetch(directory, text, manifest, asset)
            os.utime(directory / MANIFEST)  # when it was used last, for evict
        if missing:
            self.evict()
        return directory

    def directories(self) -> list[Path]:
        prefix = f"{ARTIFACTS}/"
        names = [one["path"].removeprefix(prefix) for one in self.remote.objects(ARTIFACTS)]
        return sorted(self.root / name.removesuffix(".json") for name in names)

    def versions(self, directories: Iterable[Path]) -> dict[str, str]:
        tags = {one["path"]: str(one["e_tag"]) for one in self.remote.objects(ARTIFACTS)}
        keys = {self._key(directory) for directory in directories}
        return {key: tag for key, tag in tags.items() if key in keys}

    def location(self, directory: Path, file: str | None = None) -> str:
        made = None if file in (None, MANIFEST) else self.manifest(directory, directory.name)
        key = self._key(directory) if made is None else _blob(made.files[str(file)].sha256)
        return f"{self.remote.url}/{key}"

    @contextmanager
    def exclusive(
        self, directory: Path, asset: str, inputs: Iterable[Path] = (), waiting: Waiting = say_nothing
    ) -> Iterator[None]:
        """Held among hosts where COMPRESSION_PG says by whom, and on this host, where the cache is in use."""
        inputs = list(inputs)
        with ExitStack() as held:
            if locks := held.enter_context(shared_locks(asset, waiting)):
                locks.take(self._lock_name(directory))
                for path in inputs:
                    locks.take(self._lock_name(path), shared=True)
            held.enter_context(super().exclusive(directory, asset, inputs, waiting))
            self._expected[directory] = self.remote.tag(self._key(directory))
            try:
                yield
            finally:
                del self._expected[directory]

    @contextmanager
    def attempt(self, directory: Path, wanted: str) -> Iterator[Path]:
        """What another host saved of the same attempt is there; what this one saves goes to the store."""
        scratch, saved = self.scratch(directory, wanted), self._scratch(directory, wanted)
        saved.bring(scratch)
        with saved.saving(scratch):
            yield scratch

    def publish(self, work: Path, directory: Path, **about: Any) -> Manifest:
        """Send the files of `work`, then its manifest. Raises Superseded when another process was first."""
        manifest = sealed(work, **about)
        with self._publishing(manifest.asset):
            self._send(work, manifest)
            self._commit(directory, manifest.as_text())
        self._place(work, directory, manifest)
        self._drop_scratch(directory)
        self.evict()
        return manifest

    def forget(self, directory: Path, asset: str, folder: str, mark: str) -> None:
        """The blobs go with `sweep`, the local copy at once: without the folder it is fetched when it is needed."""
        manifest = self.manifest(directory, asset)
        if manifest is None:
            return
        with tempfile.TemporaryDirectory() as desk, self._publishing(asset):
            file = Path(desk) / mark
            write_durably(file, f"{asset}\n")
            record = record_of(file)
            self.remote.put_if_absent(_blob(record.sha256), file)
            self._commit(directory, without(manifest, folder, mark, record).as_text())
        super().remove(directory)

    def sweep(self) -> int:
        """Raises StudyError without COMPRESSION_PG, or where a manifest cannot be read: what it names is not known."""
        with shared_locks("clean", say_nothing) as locks:
            if locks is None:
                raise StudyError(
                    f"what no artifact of {self.remote.url} has any more stays there: without {PG} nobody can tell "
                    "whether another host is about to publish it; set it, then run: compression clean"
                )
            locks.take(self._blobs_lock)
            found, damaged = self.manifests()
            if damaged:
                raise StudyError(f"nothing is removed from {self.remote.url}: {next(iter(damaged.values()))}")
            named = {
                _blob(record.sha256) for manifest in found.values() for record in manifest.files.values()
            }
            gone = [one for one in self.remote.objects(BLOBS) if one["path"] not in named]
            self.remote.delete(one["path"] for one in gone)
            return sum(int(one["size"]) for one in gone)

    def remove(self, directory: Path) -> None:
        """An artifact, here and in the store; the caller holds it by `exclusive`."""
        self.remote.delete([self._key(directory)])
        super().remove(directory)

    def evict(self) -> int:
        """Make room by COMPRESSION_CACHE_GB; bytes that are free now."""
        return evict(self.root, self._unused)

    @contextmanager
    def _unused(self, directory: Path) -> Iterator[bool]:
        """Whether nobody on this host works with a copy or fetches it, which stays so in this context."""
        with ExitStack() as held:
            for file in (self._lock(directory), self._fetch_lock(directory)):
                if (lock := try_lock(file, "making room")) is None:
                    yield False
                    return
                held.enter_context(lock)
            yield True

    def _refuse_damage(self, directory: Path, manifest: Manifest, asset: str, *, thorough: bool) -> None:
        """A damaged copy is no damaged artifact: it is fetched again, by whoever is to read it."""
        if thorough and self.local(directory, asset) is None:
            raise StudyError(f"{asset} was removed meanwhile; {rebuild_hint(asset)}")
        if directory.exists() and self.damage(directory, manifest, thorough=thorough):
            shutil.rmtree(directory)
            if thorough:
                self.local(directory, asset)

    def _read(self, directory: Path, text: str, asset: str) -> Manifest:
        try:
            return read_manifest(text)
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(
                f"{self.location(directory)} cannot be read ({error}); {rebuild_hint(asset)}"
            ) from error

    def _is_cached(self, directory: Path, text: str) -> bool:
        try:
            return (directory / MANIFEST).read_text() == text
        except OSError:
            return False

    def _fetch(self, directory: Path, text: str, manifest: Manifest, asset: str) -> None:
        work = directory.parent / f"{_FETCHING}{directory.name}"
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir(parents=True)

        def fetch(name: str) -> None:
            sha256 = manifest.files[name].sha256
            self.remote.download(_blob(sha256), work / name, sha256)

        try:
            with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
                list(pool.map(fetch, manifest.files))
            write_durably(work / MANIFEST, text)
            self._place(work, directory, manifest)
        except StudyError as error:
            raise StudyError(f"{asset} cannot be fetched: {error}; {rebuild_hint(asset)}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    @contextmanager
    def _publishing(self, asset: str) -> Iterator[None]:
        """Nobody sweeps before the manifest of what is sent is there."""
        with shared_locks(asset, say_nothing) as locks:
            if locks:
                locks.take(self._blobs_lock, shared=True)
            yield

    @property
    def _blobs_lock(self) -> str:
        return f"{self.remote.url}/{BLOBS}"

    def _send(self, work: Path, manifest: Manifest) -> None:
        def send(name: str) -> None:
            self.remote.put_if_absent(_blob(manifest.files[name].sha256), work / name)

        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(send, manifest.files))

    def _commit(self, directory: Path, text: str) -> None:
        self.remote.commit(self._key(directory), text.encode(), self._expected[directory])

    def _drop_scratch(self, directory: Path) -> None:
        super()._drop_scratch(directory)
        self._scratch(directory, "").drop()

    def _scratch(self, directory: Path, wanted: str) -> SharedScratch:
        return SharedScratch(self.remote, f"scratch/{directory.relative_to(self.root).as_posix()}", wanted)

    def _key(self, directory: Path) -> str:
        return f"{ARTIFACTS}/{directory.relative_to(self.root).as_posix()}.json"

    def _fetch_lock(self, directory: Path) -> Path:
        own = self._lock(directory)
        return own.with_name(f"fetch.{own.name}")

    def _lock_name(self, directory: Path) -> str:
        return f"{self.remote.url}/{directory.relative_to(self.root).as_posix()}"


def _blob(sha256: str) -> str:
    return f"{BLOBS}/{sha256}"
