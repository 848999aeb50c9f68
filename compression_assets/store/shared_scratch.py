"""What a long step wants to find again when its host is lost: its scratch directory, copied to the object store.

A copy is a set of files below <study>/scratch/<kind>/<name>/ and an index, which goes last. Names that end in .partial
are still being written and stay here.
"""

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.store.fingerprints import file_sha256
from compression_assets.store.object_store import ObjectStore

VARIABLE = "COMPRESSION_CHECKPOINT_MINUTES"
MINUTES = 10.0
INDEX = "index.json"


class SharedScratch:
    """The copy of one artifact's scratch. prefix: its folder in the store. wanted: fingerprint of what is made."""

    def __init__(self, remote: ObjectStore, prefix: str, wanted: str):
        self._remote = remote
        self._prefix = prefix
        self._wanted = wanted
        self._sent: dict[str, tuple[int, int]] = {}
        self._sums: dict[tuple[str, int, int], str] = {}

    def bring(self, scratch: Path) -> None:
        """Put what another host saved of the same attempt into `scratch`; what this host saved itself is there."""
        found = self._remote.read(f"{self._prefix}/{INDEX}")
        index = json.loads(found[0]) if found else None
        if index is None or index["wanted"] != self._wanted or index["host"] == _host(scratch):
            return
        fetched = scratch.with_name(f"{scratch.name}.fetching")
        shutil.rmtree(fetched, ignore_errors=True)
        try:
            for name, sha256 in index["files"].items():
                self._remote.download(f"{self._prefix}/{sha256}", fetched / name, sha256)
        except StudyError:
            # Whoever saved it went on meanwhile and removed what it replaced: then the step begins anew.
            shutil.rmtree(fetched, ignore_errors=True)
            return
        if fetched.exists():
            shutil.rmtree(scratch)
            fetched.rename(scratch)

    def save(self, scratch: Path) -> bool:
        """Copy the files of `scratch`, then the index; False when there is nothing new, or a file is gone already.

        What is sent are links of its own, so that work may go on and replace or remove what they are of.
        """
        sending = scratch.with_name(f"{scratch.name}.sending")
        shutil.rmtree(sending, ignore_errors=True)
        try:
            before = _state(scratch)
            if not before or before == self._sent:
                return False
            for name in before:
                (sending / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(scratch / name, sending / name)
            if _state(sending) != before:
                return False
            self._send(sending, before)
        except FileNotFoundError:
            return False
        finally:
            shutil.rmtree(sending, ignore_errors=True)
        self._sent = before
        return True

    def _send(self, sending: Path, files: dict[str, tuple[int, int]]) -> None:
        # By size and time: of a hundred finished shards none is read twice.
        self._sums = {
            (name, *about): self._sums.get((name, *about)) or file_sha256(sending / name)
            for name, about in files.items()
        }
        sums = {name: sha256 for (name, _, _), sha256 in self._sums.items()}
        for name, sha256 in sums.items():
            self._remote.put_if_absent(f"{self._prefix}/{sha256}", sending / name)
        index = {"wanted": self._wanted, "host": _host(sending.with_suffix("")), "files": sums}
        self._remote.put(f"{self._prefix}/{INDEX}", json.dumps(index).encode())
        kept = {f"{self._prefix}/{name}" for name in (INDEX, *sums.values())}
        present = [one["path"] for one in self._remote.objects(self._prefix)]
        self._remote.delete(key for key in present if key not in kept)

    def drop(self) -> None:
        self._remote.delete([one["path"] for one in self._remote.objects(self._prefix)])

    @contextmanager
    def saving(self, scratch: Path) -> Iterator[None]:
        """Save every COMPRESSION_CHECKPOINT_MINUTES until the end of this context, beside the work that fills it."""
        ended = threading.Event()
        seconds = minutes() * 60

        def repeat() -> None:
            while not ended.wait(seconds):
                try:
                    self.save(scratch)
                except (StudyError, OSError) as error:
                    # The step itself needs no store until it publishes.
                    print(f"a checkpoint was not saved: {error}", flush=True)

        thread = threading.Thread(target=repeat, name="shared scratch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def minutes() -> float:
    """COMPRESSION_CHECKPOINT_MINUTES, by default MINUTES. Raises StudyError for what is no time."""
    text = os.environ.get(VARIABLE) or str(MINUTES)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise StudyError(f"{VARIABLE} is {text!r}: write minutes, such as 10")
    return value


def _host(scratch: Path) -> str:
    return f"{socket.gethostname()}:{scratch.resolve()}"


def _state(scratch: Path) -> dict[str, tuple[int, int]]:
    """Name -> (size, mtime in ns) of every file that is written whole."""
    found = {}
    for file in sorted(scratch.rglob("*")):
        name = file.relative_to(scratch)
        if file.is_file() and not any(part.endswith(".partial") for part in name.parts):
            stat = file.stat()
            found[name.as_posix()] = (stat.st_size, stat.st_mtime_ns)
    return found
