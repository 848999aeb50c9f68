"""The writes that the outbox holds, as SQL: each is a plain function of an open transaction and its JSON."""

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from compression_assets.store.metrics_schema import METRICS_TABLE, SAMPLES_TABLE, create_leaderboard

if TYPE_CHECKING:
    import duckdb

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_WIDER = ("BOOLEAN", "BIGINT", "DOUBLE", "VARCHAR")
"""Column types of `write_table`, each of which holds the ones before it."""


def apply(db: "duckdb.DuckDBPyConnection", write: dict[str, Any]) -> None:
    """Do what one entry of the outbox says."""
    kinds: dict[str, Callable[..., None]] = {
        "part": write_part,
        "table": write_table,
        "keep_models": keep_models,
    }
    content = dict(write)
    kinds[content.pop("kind")](db, **content)


def write_part(
    db: "duckdb.DuckDBPyConnection",
    model: str,
    ordering: str,
    position: int,
    part: str,
    rows: list[dict[str, Any]],
    samples: list[dict[str, Any]],
    lineage: list[dict[str, Any]],
) -> None:
    """Replace what one part of the measurements said about a model."""
    db.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?)", [model, ordering, position])
    for schema, ddl, content in (("metrics", METRICS_TABLE, rows), ("samples", SAMPLES_TABLE, samples)):
        table = f'{schema}."{model}"'
        db.execute(ddl.format(key=model))
        db.execute(f"DELETE FROM {table} WHERE part = ?", [part])
        _insert(db, table, [{**row, "part": part} for row in content], replace=True)
    _insert(db, "lineage", lineage, replace=True)
    create_leaderboard(db)


def write_table(
    db: "duckdb.DuckDBPyConnection", name: str, rows: list[dict[str, Any]], key_columns: Sequence[str]
) -> None:
    """Insert rows, after deleting those that agree with any of them in `key_columns`; without these, all."""
    if rows:
        _fit_columns(db, name, rows)
    elif not _columns(db, name):
        return
    if not key_columns:
        db.execute(f'DELETE FROM "{name}"')
    else:
        keys = [dict(key) for key in {tuple((column, row[column]) for column in key_columns) for row in rows}]
        same = " AND ".join(f'"{column}" IS NOT DISTINCT FROM ?' for column in key_columns)
        for key in keys:
            db.execute(f'DELETE FROM "{name}" WHERE {same}', [key[column] for column in key_columns])
    _insert(db, f'"{name}"', rows)


def keep_models(db: "duckdb.DuckDBPyConnection", models: list[str], lineage: list[str]) -> None:
    """Drop what is known about all other models."""
    known = [row[0] for row in db.execute("SELECT model FROM models").fetchall()]
    for key in set(known) - set(models):
        db.execute("DELETE FROM models WHERE model = ?", [key])
        db.execute(f'DROP TABLE IF EXISTS metrics."{key}"')
        db.execute(f'DROP TABLE IF EXISTS samples."{key}"')
    db.execute("DELETE FROM lineage WHERE NOT list_contains(?, model)", [lineage])
    create_leaderboard(db)


def check_names(*names: str) -> None:
    """Raise ValueError for what is no plain SQL name: names reach SQL as text."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a table or column: small letters, digits and '_' can")


def _fit_columns(db: "duckdb.DuckDBPyConnection", name: str, rows: list[dict[str, Any]]) -> None:
    """Make the table, or the columns that it lacks, and widen those that are too narrow."""
    wanted = {
        column: _type(column, [row.get(column) for row in rows])
        for column in dict.fromkeys(column for row in rows for column in row)
    }
    present = _columns(db, name)
    if not present:
        columns = ", ".join(f'"{column}" {kind}' for column, kind in wanted.items())
        db.execute(f'CREATE TABLE "{name}" ({columns})')
        return
    for column, kind in wanted.items():
        old = present.get(column)
        if old is None:
            db.execute(f'ALTER TABLE "{name}" ADD COLUMN "{column}" {kind}')
        elif old in _WIDER and kind in _WIDER and _WIDER.index(old) < _WIDER.index(kind):
            db.execute(f'ALTER TABLE "{name}" ALTER "{column}" TYPE {kind}')


def _columns(db: "duckdb.DuckDBPyConnection", name: str) -> dict[str, str]:
    found = db.execute(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? AND schema_name = 'main'",
        [name],
    )
    return dict(found.fetchall())


def _type(column: str, values: list[Any]) -> str:
    if column.endswith("_at"):
        return "TIMESTAMPTZ"
    kinds = {type(value) for value in values if value is not None}
    if kinds & {dict, list}:
        return "JSON"
    if not kinds:
        return "DOUBLE"
    names = {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}
    return max((names[kind] for kind in kinds), key=_WIDER.index)


def _insert(
    db: "duckdb.DuckDBPyConnection", table: str, rows: list[dict[str, Any]], replace: bool = False
) -> None:
    """As one Arrow table: row by row takes DuckDB a hundred times as long. replace: rows with the same primary key."""
    if not rows:
        return

    import pyarrow as pa

    plain = [
        {
            column: json.dumps(value) if isinstance(value, dict | list) else value
            for column, value in row.items()
        }
        for row in rows
    ]
    columns = list(dict.fromkeys(column for row in plain for column in row))
    incoming = pa.table({column: pa.array([row.get(column) for row in plain]) for column in columns})
    db.register("incoming", incoming)
    try:
        conflict = "OR REPLACE" if replace else ""
        db.execute(f"INSERT {conflict} INTO {table} BY NAME SELECT * FROM incoming")
    finally:
        db.unregister("incoming")
