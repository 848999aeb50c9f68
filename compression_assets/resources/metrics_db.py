"""The DuckDB file of a study: tables as data, writes in short transactions. No science, no Dagster.

Everything in it is derived from artifacts on disk, so it can be deleted and filled again.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    import duckdb

LEADERBOARD_METRICS = (
    "g_eval",
    "prompt_alignment",
    "clarity",
    "size_mib",
    "perplexity",
    "compression_ratio",
    "parameters",
)
"""Columns of the view `leaderboard` after `model` and `ordering`; one that is not measured yet is NULL."""

_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS metrics;
CREATE SCHEMA IF NOT EXISTS samples;
CREATE TABLE IF NOT EXISTS models (model VARCHAR PRIMARY KEY, ordering VARCHAR, position INTEGER);
CREATE TABLE IF NOT EXISTS lineage (
    model VARCHAR PRIMARY KEY, asset VARCHAR, ordering VARCHAR, parent VARCHAR, technique VARCHAR, step INTEGER,
    recipe JSON, recipe_fingerprint VARCHAR, fingerprint VARCHAR, data_version VARCHAR, seed BIGINT,
    tokens_seen BIGINT, seconds DOUBLE, peak_memory_mib DOUBLE, device VARCHAR, path VARCHAR, created_at TIMESTAMPTZ);
CREATE TABLE IF NOT EXISTS paper_table_1 (
    model VARCHAR PRIMARY KEY, g_eval DOUBLE, prompt_alignment DOUBLE, clarity DOUBLE, size_mib DOUBLE,
    perplexity DOUBLE);
"""

_METRICS_TABLE = """
CREATE OR REPLACE TABLE metrics.{key} (
    metric VARCHAR PRIMARY KEY, value DOUBLE, lo DOUBLE, hi DOUBLE, unit VARCHAR, n BIGINT, n_failed BIGINT,
    higher_is_better BOOLEAN, aggregate VARCHAR, note VARCHAR,
    data_version VARCHAR, run_id VARCHAR, measured_at TIMESTAMPTZ)
"""

_SAMPLES_TABLE = """
CREATE OR REPLACE TABLE samples.{key} (
    metric VARCHAR, item VARCHAR, value DOUBLE, weight DOUBLE, error VARCHAR, PRIMARY KEY (metric, item))
"""


class MetricsDatabase:
    """One DuckDB file. DuckDB lets one process write while nobody else has the file open.

    file: path of the database. patience: seconds to wait for another process to close it.
    """

    def __init__(self, file: Path, patience: float = 60.0):
        self.file = Path(file)
        self.patience = patience

    def write_model(
        self,
        key: str,
        ordering: str,
        position: int,
        rows: list[dict[str, Any]],
        samples: list[dict[str, Any]],
        lineage: list[dict[str, Any]],
    ) -> None:
        """Replace everything known about one model, in one transaction."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?)", [key, ordering, position])
            db.execute(_METRICS_TABLE.format(key=key))
            _insert(db, f"metrics.{key}", rows)
            db.execute(_SAMPLES_TABLE.format(key=key))
            _insert(db, f"samples.{key}", samples)
            _insert(db, "lineage", lineage)
            _create_leaderboard(db)

    def write_paper_table(self, rows: list[dict[str, Any]]) -> None:
        """Replace the paper's Table 1 (arXiv 2511.19495)."""
        with self._transaction() as db:
            db.execute("DELETE FROM paper_table_1")
            _insert(db, "paper_table_1", rows)

    def keep_models(self, keys: list[str], lineage: list[str]) -> None:
        """Drop the rows of models that the study no longer lists: `keys` are measured, `lineage` are all there are."""
        with self._transaction() as db:
            known = [row[0] for row in db.execute("SELECT model FROM models").fetchall()]
            for key in set(known) - set(keys):
                db.execute("DELETE FROM models WHERE model = ?", [key])
                db.execute(f"DROP TABLE IF EXISTS metrics.{key}")
                db.execute(f"DROP TABLE IF EXISTS samples.{key}")
            db.execute("DELETE FROM lineage WHERE NOT list_contains(?, model)", [lineage])
            _create_leaderboard(db)

    def query(self, sql: str, parameters: list[Any] | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and rows of a read-only query.

        Raises StudyError when the file does not exist yet or the statement is not valid.
        """
        import duckdb

        if not self.file.exists():
            raise StudyError(f"{self.file} does not exist yet: nothing has been measured; run: make demo")
        with _closing(self._connect(read_only=True)) as db:
            try:
                result = db.execute(sql, parameters or [])
            except duckdb.Error as error:
                raise StudyError(f"the query failed: {str(error).splitlines()[0]}") from error
            return [column[0] for column in result.description or []], result.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator["duckdb.DuckDBPyConnection"]:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with _closing(self._connect(read_only=False)) as db:
            db.execute("BEGIN")
            db.execute(_SCHEMA)
            yield db
            db.execute("COMMIT")

    def _connect(self, *, read_only: bool) -> "duckdb.DuckDBPyConnection":
        import duckdb

        return _patiently(
            lambda: duckdb.connect(str(self.file), read_only=read_only), self.file, self.patience
        )


@contextmanager
def _closing(db: "duckdb.DuckDBPyConnection") -> Iterator["duckdb.DuckDBPyConnection"]:
    """Closing without COMMIT rolls back, so an error leaves the tables as they were."""
    try:
        yield db
    finally:
        db.close()


def _patiently(
    connect: Callable[[], "duckdb.DuckDBPyConnection"], file: Path, patience: float
) -> "duckdb.DuckDBPyConnection":
    import duckdb

    deadline = time.monotonic() + patience
    pause = 0.05
    while True:
        try:
            return connect()
        except duckdb.IOException as error:
            if "lock" not in str(error).lower():
                raise StudyError(f"{file} cannot be opened: {str(error).splitlines()[0]}") from error
            if time.monotonic() > deadline:
                raise StudyError(
                    f"{file} is held open by another process for more than {patience:.0f} s; close it and run again, "
                    f"finished models are kept ({str(error).splitlines()[0]})"
                ) from error
            time.sleep(pause)
            pause = min(pause * 2, 2.0)


def _insert(db: "duckdb.DuckDBPyConnection", table: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    columns = list(rows[0])
    marks = ", ".join("?" for _ in columns)
    db.executemany(
        f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})",
        [[row[column] for column in columns] for row in rows],
    )


def _create_leaderboard(db: "duckdb.DuckDBPyConnection") -> None:
    """One row a measured model; the view is made anew because it names every table in `metrics`."""
    keys = [row[0] for row in db.execute("SELECT model FROM models ORDER BY position").fetchall()]
    if not keys:
        db.execute("DROP VIEW IF EXISTS leaderboard")
        return
    values = " UNION ALL ".join(f"SELECT '{key}' AS model, metric, value FROM metrics.{key}" for key in keys)
    columns = ", ".join(f"max(value) FILTER (metric = '{name}') AS {name}" for name in LEADERBOARD_METRICS)
    db.execute(
        f"CREATE OR REPLACE VIEW leaderboard AS SELECT models.model, models.ordering, {columns} "
        f"FROM models JOIN ({values}) AS measured USING (model) "
        "GROUP BY models.model, models.ordering, models.position ORDER BY models.position"
    )
