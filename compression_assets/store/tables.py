"""Tables as Parquet with typed columns: those that a step makes of what others measured, from which the database is
derived."""

import filecmp
import json
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.store.object_store import ObjectStore, store_of

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "tables"
"""Directory of a study that has one file a table."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")

Rows = Sequence[dict[str, Any]]


def write_table(root: Path, name: str, rows: Rows) -> None:
    """Replace a table of the study below `root`; without rows there is none.

    Raises ValueError for what is no plain SQL name, since names reach SQL as text, and what `typed` raises.
    """
    for one in (name, *(column for row in rows for column in row)):
        if not _NAME.fullmatch(one):
            raise ValueError(f"{one!r} cannot name a table or column: small letters, digits and '_' can")
    file, remote = root / FOLDER / f"{name}.parquet", store_of(root)
    if rows:
        write_parquet(typed(rows), file)
        if remote:
            remote.put(f"{FOLDER}/{file.name}", file)
    else:
        file.unlink(missing_ok=True)
        if remote:
            remote.delete([f"{FOLDER}/{file.name}"])


def tables(root: Path) -> dict[str, Path]:
    """Name -> file of every table that steps have made, on whatever host."""
    if remote := store_of(root):
        _bring(remote, root / FOLDER)
    return {file.stem: file for file in sorted((root / FOLDER).glob("[!.]*.parquet"))}


def _bring(remote: ObjectStore, folder: Path) -> None:
    """Make the files of a folder those of the store; one that is the same is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    present = {Path(one["path"]).name: str(one["e_tag"]) for one in remote.objects(FOLDER)}
    known = folder / ".tags.json"
    try:
        before = json.loads(known.read_text())
    except (OSError, ValueError):
        before = {}
    for name, tag in present.items():
        found = None
        if before.get(name) != tag or not (folder / name).exists():
            found = remote.read(f"{FOLDER}/{name}")
        if found is not None:
            _replace(folder / name, found[0])
    for file in folder.glob("[!.]*.parquet"):
        if file.name not in present:
            file.unlink(missing_ok=True)
    if before != present:
        _replace(known, json.dumps(present).encode())


def _replace(file: Path, content: bytes) -> None:
    if file.exists() and file.read_bytes() == content:
        return
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_bytes(content)
    os.replace(aside, file)


def write_parquet(table: "pa.Table", file: Path) -> None:
    """Write a file that is there whole, or not at all; others may read it or write the same one meanwhile.

    A file that has this content already is left as it is, so that nothing is derived from it again.
    """
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        pq.write_table(table, aside)
        if not (file.exists() and filecmp.cmp(aside, file, shallow=False)):
            os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def typed(rows: Rows) -> "pa.Table":
    """Rows as columns, each of the widest type that its values need; a column that a row lacks is null there.

    bool, int, float and str; dict and list become JSON; a column whose name ends in _at holds times in ISO 8601.
    A column without any value counts as float. Raises pyarrow.ArrowException for values that no type holds.
    """
    import pyarrow as pa

    columns = dict.fromkeys(column for row in rows for column in row)
    return pa.table({column: _column(column, [row.get(column) for row in rows]) for column in columns})


def _column(name: str, values: list[Any]) -> "pa.Array":
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if name.endswith("_at"):
        times = [None if value is None else datetime.fromisoformat(value) for value in values]
        return pa.array(times, pa.timestamp("us", "UTC"))
    if kinds & {dict, list}:
        texts = [None if value is None else json.dumps(value, allow_nan=False) for value in values]
        return pa.array(texts, pa.string()).cast(pa.json_())
    if str in kinds:
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    if float in kinds or not kinds:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array(values, pa.int64() if int in kinds else pa.bool_())
