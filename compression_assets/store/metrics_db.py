"""The DuckDB file of a study: tables as data. No science, no Dagster.

DuckDB lets one process write while nobody else has the file open, and steps must not wait for a user's shell. So a
write is first a file in the outbox. Whoever comes next merges what waits there into a copy of the database and renames
that over the old one: a reader keeps the state that it opened, nobody waits for it, and a process that dies while it
merges leaves the old file whole. Everything in the database is derived from artifacts on disk.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.store import metrics_writes
from compression_assets.store.metrics_schema import LEADERBOARD_METRICS as LEADERBOARD_METRICS
from compression_assets.store.metrics_schema import prepare
from compression_assets.store.outbox import Entry, Outbox

if TYPE_CHECKING:
    import duckdb

Rows = Sequence[dict[str, Any]]

_WORK = ".merging"


class HeldOpen(StudyError):
    """Another process has the database open for writing, and kept it open for as long as anybody waited."""


@dataclass(frozen=True)
class Merged:
    """What a merge came to. waiting: writes left for the next one. why: what held them up, or ""."""

    applied: int
    waiting: int
    why: str = ""


class MetricsDatabase:
    """One DuckDB file and its outbox, for any number of processes.

    file: path of the database. patience: seconds that a merge waits for another process to finish its own, or to
    close a database that it writes to itself; then the writes wait in the outbox.
    """

    def __init__(self, file: Path, patience: float = 5.0):
        self.file = Path(file)
        self.patience = patience
        self.outbox = Outbox(self.file.parent / "outbox")

    def write_part(
        self,
        model: str,
        ordering: str,
        position: int,
        part: str,
        rows: Rows,
        samples: Rows,
        lineage: Rows = (),
    ) -> Merged:
        """Replace what `part` ("metrics", "answers", "quality", …) said about one model before.

        rows, samples: of the tables metrics.<model> and samples.<model>; lineage: rows of that table, by model.
        Raises what `_write` raises.
        """
        metrics_writes.check_names(model, part)
        return self._write(
            kind="part",
            model=model,
            ordering=ordering,
            position=position,
            part=part,
            rows=list(rows),
            samples=list(samples),
            lineage=list(lineage),
        )

    def write_table(self, name: str, rows: Rows, key_columns: Sequence[str] = ()) -> Merged:
        """Write rows into a table of their own, made as the rows need it.

        They replace the rows that agree with any of them in all `key_columns`; without key columns the whole table.
        Values: bool, int, float, str, None; dict and list become JSON; a column ending in _at holds times in ISO 8601.
        Raises what `_write` raises.
        """
        metrics_writes.check_names(name, *{column for row in rows for column in row})
        return self._write(kind="table", name=name, rows=list(rows), key_columns=list(key_columns))

    def keep_models(self, keys: list[str], lineage: list[str]) -> Merged:
        """Drop the rows of models that the study no longer lists: `keys` are measured, `lineage` are all there are."""
        return self._write(kind="keep_models", models=keys, lineage=lineage)

    def merge(self, patience: float | None = None) -> Merged:
        """Bring the writes that wait into the database, each exactly once and in order. Never fails for a reader."""
        patience = self.patience if patience is None else patience
        if not self.outbox.waiting():
            return Merged(0, 0)
        with self.outbox.turn(patience) as ours:
            if not ours:
                return self._left("another process is merging")
            return self._merge_all(patience)

    def query(self, sql: str, parameters: list[Any] | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of a read-only query.

        Raises StudyError when the file does not exist yet or the statement is not valid.
        """
        import duckdb

        if not self.file.exists():
            raise StudyError(f"{self.file} does not exist yet: nothing has been measured; run: make demo")
        with _closing(_patiently(lambda: self._open(read_only=True), self.patience)) as db:
            try:
                result = db.execute(sql, parameters or [])
                return [column[0] for column in result.description or []], result.fetchall()
            except duckdb.Error as error:
                raise StudyError(f"the query failed: {str(error).splitlines()[0]}") from error

    def _write(self, **content: Any) -> Merged:
        """Put a write and merge what can be merged.

        Raises ValueError for a NaN, and for rows that the database refuses: these are moved to outbox/rejected.
        """
        entry = self.outbox.put(content)
        merged = self.merge()
        if (reason := self.outbox.reason(entry)) is not None:
            raise ValueError(f"the database refused a write: {reason}")
        return merged

    def _merge_all(self, patience: float) -> Merged:
        """Under the merge lock: apply everything to a copy, put the copy in the file's place, empty the outbox."""
        import duckdb

        self.outbox.remove_leftovers()
        entries = self.outbox.waiting()
        if not entries:
            return Merged(0, 0)
        target = self.file.resolve()
        # In a folder of its own under its own name: DuckDB calls a database what its file is called.
        work = target.parent / _WORK
        shutil.rmtree(work, ignore_errors=True)
        try:
            _patiently(lambda: self._settle(target), patience)
            work.mkdir(parents=True)
            with _writable(work) as desk:
                if target.exists():
                    shutil.copyfile(target, desk / target.name)
                applied = self._apply(desk / target.name, entries)
                if desk != work:
                    shutil.copyfile(desk / target.name, work / target.name)
            _sync(work / target.name)
            os.replace(work / target.name, target)
        except (HeldOpen, duckdb.OperationalError) as error:
            return self._left(str(error).splitlines()[0])
        finally:
            shutil.rmtree(work, ignore_errors=True)
        for entry in entries:
            entry.file.unlink(missing_ok=True)
        return Merged(applied, len(self.outbox.waiting()))

    def _settle(self, target: Path) -> None:
        """Make sure that nobody writes to the file, and that it is whole without its write-ahead log."""
        if not target.exists():
            return
        # A writer that was killed left its log beside the file; opening the file to write takes it in.
        log = target.with_name(target.name + ".wal")
        self._open(read_only=not log.exists()).close()

    def _apply(self, copy: Path, entries: list[Entry]) -> int:
        import duckdb

        applied = 0
        with _closing(duckdb.connect(str(copy))) as db:
            with _transaction(db):
                prepare(db)
            done = {row[0] for row in db.execute("SELECT id FROM applied_writes").fetchall()}
            for entry in entries:
                if entry.id in done:  # its process died between the rename and the end
                    continue
                try:
                    with _transaction(db):
                        metrics_writes.apply(db, entry.read())
                        db.execute("INSERT INTO applied_writes VALUES (?, now())", [entry.id])
                    applied += 1
                except _refusals() as error:
                    self.outbox.reject(entry, str(error).splitlines()[0])
            db.execute("CHECKPOINT")
        return applied

    def _open(self, *, read_only: bool) -> "duckdb.DuckDBPyConnection":
        import duckdb

        try:
            return duckdb.connect(str(self.file), read_only=read_only)
        except duckdb.IOException as error:
            if "lock" in str(error).lower():
                raise
            raise StudyError(
                f"{self.file} cannot be read ({str(error).splitlines()[0]}); delete it and run the study again: "
                "it is filled anew from the measurements on disk"
            ) from error

    def _left(self, why: str) -> Merged:
        return Merged(0, len(self.outbox.waiting()), why)


@contextmanager
def _closing(db: "duckdb.DuckDBPyConnection") -> Iterator["duckdb.DuckDBPyConnection"]:
    try:
        yield db
    finally:
        db.close()


@contextmanager
def _transaction(db: "duckdb.DuckDBPyConnection") -> Iterator[None]:
    db.execute("BEGIN")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _refusals() -> tuple[type[Exception], ...]:
    """Errors that a write will meet every time: the fault is its own, not the disk's."""
    import duckdb
    import pyarrow as pa

    return (
        duckdb.DataError,
        duckdb.IntegrityError,
        duckdb.ProgrammingError,
        pa.ArrowException,
        KeyError,
        TypeError,
    )


def _patiently(attempt: Callable[[], Any], patience: float) -> Any:
    """Retry while another process writes to the database; then a HeldOpen that names it."""
    import duckdb

    deadline = time.monotonic() + patience
    pause = 0.02
    while True:
        try:
            return attempt()
        except duckdb.IOException as error:
            if time.monotonic() >= deadline:
                detail = str(error).splitlines()[0]
                raise HeldOpen(
                    f"the database is held open for writing by another process ({detail}); close it there"
                ) from error
            time.sleep(pause)
            pause = min(pause * 2, 0.5)


@contextmanager
def _writable(folder: Path) -> Iterator[Path]:
    """The folder, or another for a while: DuckDB puts the log of what it writes beside the path up to a "?"."""
    if "?" not in str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as elsewhere:
        yield Path(elsewhere)


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
