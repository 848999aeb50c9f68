"""How far a run on several hosts is: as `progress`, with a table in PostgreSQL in place of a file."""

import json
import logging
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.machine.progress import ProgressLog
from compression_assets.machine.shared_locks import connect

LATE = 100
"""Rows that are looked at again: an event with a smaller number may become visible after one with a greater."""


def schema_of(study: str) -> str:
    """Where PostgreSQL keeps what belongs to a study: its progress, and Dagster's history of it."""
    return f"compression_{study}"


def make_schema(study: str) -> None:
    """Make the schema of a study, with the table of its progress, where they are missing."""
    from psycopg2.errors import UniqueViolation

    schema = schema_of(study)
    table = f"{schema}.progress (id bigserial PRIMARY KEY, event text NOT NULL)"
    with closing(connect("compression")) as session, session.cursor() as cursor:
        for statement in (f"CREATE SCHEMA IF NOT EXISTS {schema}", f"CREATE TABLE IF NOT EXISTS {table}"):
            # Of two processes that make the same at once, one is told that it is there.
            with suppress(UniqueViolation):
                cursor.execute(statement)


class SharedProgressLog(ProgressLog):
    """Appends the events of one run where every host sees them.

    Nothing but lines on a terminal hangs on them, so a step goes on when one cannot be written, and says so in its log.
    """

    def __init__(self, file: Path, study: str):
        super().__init__(file)
        self._study = study

    def append(self, line: str) -> None:
        import psycopg2

        try:
            with closing(connect("progress")) as session, session.cursor() as cursor:
                cursor.execute(f"INSERT INTO {schema_of(self._study)}.progress (event) VALUES (%s)", (line,))
        except (StudyError, psycopg2.Error) as error:
            logging.getLogger("compression_assets").warning("progress is not shown: %s", str(error).strip())


class ProgressRows:
    """The events that runs of a study append from now on."""

    def __init__(self, study: str):
        make_schema(study)
        self._table = f"{schema_of(study)}.progress"
        self._seen = {number for number, _ in self._rows(0)}

    def new(self) -> Iterator[dict[str, Any]]:
        """Those since the last call; those of a moment without PostgreSQL come with the next."""
        import psycopg2

        try:
            rows = self._rows(max(self._seen, default=0) - LATE)
        except (StudyError, psycopg2.Error):
            return
        for number, event in rows:
            if number not in self._seen:
                self._seen.add(number)
                yield json.loads(event)

    def _rows(self, after: int) -> list[tuple[int, str]]:
        with closing(connect("progress")) as session, session.cursor() as cursor:
            cursor.execute(f"SELECT id, event FROM {self._table} WHERE id > %s ORDER BY id", (after,))
            found: list[tuple[int, str]] = cursor.fetchall()
            return found
