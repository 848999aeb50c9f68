"""How far a run on several hosts is: as `progress`, with a table in Postgres in place of a file."""

import json
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from compression_assets.machine.postgres import connect, make_schema, schema_of
from compression_assets.machine.progress import ProgressLog

LATE = 100
"""Rows that are looked at again: an event with a smaller number may become visible after one with a greater."""


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
            with closing(connect("progress")) as connection, connection.cursor() as cursor:
                cursor.execute(f"INSERT INTO {schema_of(self._study)}.progress (event) VALUES (%s)", (line,))
        except psycopg2.Error as error:
            logging.getLogger("compression_assets").warning("progress is not shown: %s", str(error).strip())


class ProgressRows:
    """The events that runs of a study append from now on."""

    def __init__(self, study: str):
        make_schema(study)
        self._table = f"{schema_of(study)}.progress"
        self._seen = {number for number, _ in self._rows(0)}

    def new(self) -> Iterator[dict[str, Any]]:
        """Those since the last call; those of a moment without Postgres come with the next."""
        import psycopg2

        try:
            rows = self._rows(max(self._seen, default=0) - LATE)
        except psycopg2.Error:
            return
        for number, event in rows:
            if number not in self._seen:
                self._seen.add(number)
                yield json.loads(event)

    def _rows(self, after: int) -> list[tuple[int, str]]:
        with closing(connect("progress")) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT id, event FROM {self._table} WHERE id > %s ORDER BY id", (after,))
            found: list[tuple[int, str]] = cursor.fetchall()
            return found
