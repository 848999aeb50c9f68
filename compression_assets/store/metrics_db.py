"""The DuckDB file of a study: read by anybody, and put in place as a whole. What is in it is derived from artifacts.

A reader keeps the state that it opened, nobody waits for it, and a process that dies while it fills a new file leaves
the old one as it was.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError, first_line, next_command

if TYPE_CHECKING:
    import duckdb

STAMP_TABLE = "derived_from"
_WORK = ".deriving"
_CONFINED = ("SET enable_external_access = false", "SET lock_configuration = true")
"""DuckDB settings of a reader: read-only alone still lets COPY, ATTACH and INSTALL touch other files."""


class HeldOpen(StudyError):
    """Another process has the database open for writing."""


class MetricsDatabase:
    """One DuckDB file, for any number of readers."""

    def __init__(self, file: Path):
        self.file = Path(file)

    def query(self, sql: str, parameters: list[Any] | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of a query, which reads this database and nothing else.

        Raises StudyError when the file does not exist yet, or the statement is not valid or returns no rows, HeldOpen
        while somebody writes to it.
        """
        import duckdb

        if not self.file.exists():
            raise StudyError(
                f"{self.file} does not exist yet: nothing has been measured; run: {next_command('run')}"
            )
        with closing(self._open()) as db:
            try:
                result = db.execute(sql, parameters or [])
                if result is None or not result.description:
                    raise StudyError(
                        "the query is empty; write SQL that returns rows, such as: FROM leaderboard"
                    )
                return [column[0] for column in result.description], result.fetchall()
            except duckdb.Error as error:
                raise StudyError(f"the query failed: {first_line(error)}") from error

    def stamp(self) -> str | None:
        """What the file was derived from (`fresh`); None where there is none that can be read.

        Raises HeldOpen.
        """
        if not self.file.exists():
            return None
        try:
            found = self.query(f"SELECT stamp FROM {STAMP_TABLE}")[1]
        except HeldOpen:
            raise
        except StudyError:  # damaged, or of an earlier version of this package
            return None
        # A shell that wrote and was killed left its log: what it wrote is not derived from anything.
        return None if self._log().exists() else str(found[0][0])

    @contextmanager
    def fresh(self, stamp: str) -> Iterator["duckdb.DuckDBPyConnection"]:
        """An empty database that takes the file's place when this context ends without an error.

        stamp: kept in it, for whoever asks later what it was derived from. One process at a time may do this.
        """
        import duckdb

        target = self.file.resolve()
        # In a folder of its own under its own name: DuckDB calls a database what its file is called.
        work = target.parent / _WORK
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            with _writable(work) as desk:
                with closing(duckdb.connect(str(desk / target.name))) as db:
                    # One transaction: several hundred views are made in a tenth of the time.
                    db.execute("BEGIN")
                    yield db
                    db.execute(
                        f"CREATE TABLE {STAMP_TABLE} AS SELECT ? AS stamp, now() AS derived_at", [stamp]
                    )
                    db.execute("COMMIT")
                    db.execute("CHECKPOINT")
                if desk != work:
                    shutil.copyfile(desk / target.name, work / target.name)
            _sync(work / target.name)
            # The log of a killed writer must not be taken for the new file's.
            self._log().unlink(missing_ok=True)
            os.replace(work / target.name, target)
        except duckdb.Error as error:
            raise _of_the_system(error, target) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _open(self) -> "duckdb.DuckDBPyConnection":
        import duckdb

        try:
            db = duckdb.connect(str(self.file), read_only=True)
        except duckdb.Error as error:
            problem = first_line(error)
            if "lock" in problem.lower():
                raise HeldOpen(
                    f"the database is held open for writing by another process ({problem}); close it there"
                ) from error
            raise StudyError(
                f"{self.file} cannot be read ({problem}); delete it: "
                "the next command that reads it derives it anew from the measurements on disk"
            ) from error
        # Not while it opens: DuckDB looks for a log of its own, below a "?" in another place.
        for setting in _CONFINED:
            db.execute(setting)
        return db

    def _log(self) -> Path:
        target = self.file.resolve()
        return target.with_name(target.name + ".wal")


def _of_the_system(error: Exception, file: Path) -> Exception:
    """DuckDB's error as the system's own where a full or read-only disk is behind it."""
    for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES):
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number), str(file))
    return error


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
