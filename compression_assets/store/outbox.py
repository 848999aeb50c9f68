"""Writes that wait for their database: one JSON file each, in the order in which they were put. No SQL in here."""

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REJECTED = "rejected"


@dataclass(frozen=True)
class Entry:
    """One write. id: unique for ever, and sorts in the order of the writes."""

    id: str
    file: Path

    def read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.file.read_text())
        return content


class Outbox:
    """A folder of writes. Any number of processes put, one at a time takes (`turn`)."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def put(self, content: dict[str, Any]) -> Entry:
        """Keep one write durably: it is there whole, or not at all, whatever happens to the process.

        Raises ValueError for a NaN and TypeError for what JSON has no form for.
        """
        text = json.dumps(content, allow_nan=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".put.{uuid.uuid4().hex}.{os.getpid()}"
        try:
            with aside.open("w") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            with self._locked("names.lock", None):
                entry = self._entry(self._next_id())
                aside.rename(entry.file)
        finally:
            aside.unlink(missing_ok=True)
        _sync(self.folder)
        return entry

    def waiting(self) -> list[Entry]:
        """Every write that has not been taken, oldest first."""
        return [Entry(file.stem, file) for file in sorted(self.folder.glob("*.json"))]

    def rejected(self) -> list[Path]:
        """Writes that the database refused, the reason beside each in a .txt of the same name."""
        return sorted((self.folder / _REJECTED).glob("*.json"))

    def reject(self, entry: Entry, reason: str) -> None:
        """Put a write that can never succeed out of the way of the others."""
        (self.folder / _REJECTED).mkdir(exist_ok=True)
        (self.folder / _REJECTED / f"{entry.id}.txt").write_text(reason)
        entry.file.rename(self.folder / _REJECTED / entry.file.name)

    def reason(self, entry: Entry) -> str | None:
        """Why a write was rejected; None where it was not."""
        file = self.folder / _REJECTED / f"{entry.id}.txt"
        return file.read_text() if file.exists() else None

    def remove_leftovers(self) -> None:
        """Remove what processes that died were writing."""
        for file in self.folder.glob(".put.*"):
            if not Path(f"/proc/{file.suffix[1:]}").exists():
                file.unlink(missing_ok=True)

    def turn(self, patience: float) -> AbstractContextManager[bool]:
        """Whether this process may take writes; False when another one still does after `patience` seconds."""
        return self._locked("merge.lock", patience)

    @contextmanager
    def _locked(self, name: str, patience: float | None) -> Iterator[bool]:
        """A lock that dies with its process. patience: seconds to try; None waits for ever."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("a") as handle:
            yield _acquire(handle.fileno(), patience)

    def _next_id(self) -> str:
        # Clocks jump: a write never sorts before one that is still waiting.
        waiting = self.waiting()
        newest = int(waiting[-1].id.partition("-")[0]) if waiting else 0
        return f"{max(time.time_ns(), newest + 1):020d}-{uuid.uuid4().hex[:12]}"

    def _entry(self, name: str) -> Entry:
        return Entry(name, self.folder / f"{name}.json")


def _acquire(descriptor: int, patience: float | None) -> bool:
    if patience is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
