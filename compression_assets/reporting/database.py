"""How `compression.duckdb` is derived from a study's artifacts: the one place where anything is written into it.

Every row is read from a finished artifact, from a table that a step made of artifacts, or from the study file; so the
file can be deleted at any time, and rows of what the study no longer lists disappear by themselves.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.evaluation.answers import FILE_NAME as ANSWERS_FILE
from compression_assets.evaluation.judging.calibration import read_calibration
from compression_assets.evaluation.measured import ROWS, SAMPLES, rows_with_intervals
from compression_assets.machine.locks import try_lock
from compression_assets.reporting.artifacts import ArtifactReader
from compression_assets.reporting.lineage import lineage
from compression_assets.reporting.paper_table import read_paper_table
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.fingerprints import fingerprint
from compression_assets.store.metrics_db import HeldOpen, MetricsDatabase
from compression_assets.store.metrics_schema import TABLES, create_views
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.store.tables import tables, typed
from compression_assets.study.leaderboard_models import (
    LeaderboardModel,
    ServedModel,
    leaderboard_models,
    measured,
    served_models,
)
from compression_assets.study.model import Study
from compression_assets.study.names import JUDGE_CALIBRATION, TEACHER_MODEL, model_key, relative_directory

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

VERSION = 5
"""Of what `_fill` writes; with another one every database is derived anew."""

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Measurement:
    """A finished measurement of a model. part: which one ("metrics", "answers", …)."""

    model: LeaderboardModel
    part: str
    directory: Path
    manifest: Manifest

    @property
    def asset(self) -> str:
        return self.model.asset(self.part)


def up_to_date(study: Study, root: Path, patience: float = 5.0) -> tuple[MetricsDatabase, str]:
    """The study's database with everything that is on disk, and why it is behind that, or "".

    root: storage/<study>. patience: seconds to wait for another process that derives it.
    """
    return database_of(root), refresh(study, root, patience)


def database_of(root: Path) -> MetricsDatabase:
    return MetricsDatabase(root / "compression.duckdb")


def left_out(database: MetricsDatabase) -> list[tuple[str, str]]:
    """(artifact, reason) of everything that was too damaged to be read when the database was derived."""
    if not database.file.exists():
        return []
    return [(str(artifact), str(reason)) for artifact, reason in database.query("SELECT * FROM left_out")[1]]


def refresh(study: Study, root: Path, patience: float = 0.0) -> str:
    """Derive the database if anything has changed since it was; why that was left to somebody else, or "".

    Never waits longer than `patience` seconds for others. What is finished while a process derives is seen by that
    process: it looks again after it has given the lock back, so whoever did not get the lock may go on.
    """
    database = database_of(root)
    deadline = time.monotonic() + patience
    read = [root / directory for directory in _directories(study)]
    try:
        while _state(study, root, read) not in (None, database.stamp()):
            lock = try_lock(root / ".locks" / "database", "deriving the database")
            if lock is None:
                if time.monotonic() >= deadline:
                    return "another process derives it at the moment"
                time.sleep(POLL_SECONDS)
                continue
            with lock:
                # Whoever held the lock may have derived this very state.
                if (state := _state(study, root, read)) not in (None, database.stamp()):
                    _derive(study, root, read, str(state))
                    if database.stamp() is None:  # looking again would derive it for ever
                        return f"{database.file} cannot be read back"
    except HeldOpen as error:
        return str(error)
    return ""


def measured_version(made: Manifest, model: str, manifests: Mapping[str, Manifest]) -> str | None:
    """Data version of the model that a measurement was made of, followed through the measurements that it read.

    model: the model's directory below the study's root. manifests: directory -> manifest of measurements. None where
    what it read has been made anew since: nobody knows any more.
    """
    if model in made.inputs:
        return made.inputs[model]
    for directory, version in made.inputs.items():
        read = manifests.get(directory)
        if read is not None and read.data_version == version:
            return measured_version(read, model, manifests)
    return None


def _state(study: Study, root: Path, read: Sequence[Path]) -> str | None:
    """Hash of everything that the database is derived from, without reading it; None while there is nothing.

    read: directories of the artifacts that it is derived from.
    """
    present: dict[str, Any] = dict(artifacts_of(root).versions(read))
    for file in tables(root).values():
        try:
            found = file.stat()
        except FileNotFoundError:
            continue
        present[str(file)] = (found.st_mtime_ns, found.st_size)
    if not present and not database_of(root).file.exists():
        return None
    return fingerprint({"version": VERSION, "study": study.model_dump(mode="json"), "files": present})


def _directories(study: Study) -> list[Path]:
    made = [model.asset(part) for model, part in measured(study)]
    models = [model_key(node) for node in study.nodes.values()]
    external = [model.model for model in leaderboard_models(study) if model.ordering is None]
    files = [served.model for served in served_models(study)]
    return [
        relative_directory(a) for a in (*made, *models, *external, *files, TEACHER_MODEL, JUDGE_CALIBRATION)
    ]


def _derive(study: Study, root: Path, read: Sequence[Path], state: str) -> None:
    """Fill a fresh database. What another process made anew while it was read is not an error: its state is older."""
    import duckdb

    try:
        with database_of(root).fresh(state) as db:
            _fill(db, study, root)
    except (OSError, duckdb.Error):
        if _state(study, root, read) == state:
            raise


def _fill(db: "duckdb.DuckDBPyConnection", study: Study, root: Path) -> None:
    import pyarrow.parquet as pq

    db.execute(TABLES)
    reader = ArtifactReader(artifacts_of(root))
    found = list(_measurements(study, reader))
    models = list(dict.fromkeys(one.model for one in found))
    _insert(db, "models", typed([_model_row(model, reader) for model in models]))
    _insert(db, "lineage", typed(list(lineage(study, reader))))
    if found:
        _insert_measurements(db, study, root, found)
    engines = [_engine_row(one.model, one.manifest) for one in found if isinstance(one.model, ServedModel)]
    _insert(db, "serving", typed(engines))
    create_views(db, [model.key for model in models])
    _create(db, "paper_table_1", typed(read_paper_table()))
    judge, made = study.evaluation.judge, reader.whole(JUDGE_CALIBRATION)
    # What a judge was found to be says nothing about the one that replaced it.
    if judge is not None and made is not None and made.recipe.get("judge") == judge.content():
        rows = read_calibration(reader.directory(JUDGE_CALIBRATION)).table()
        _create(db, JUDGE_CALIBRATION, typed([row | {"measured_at": made.created_at} for row in rows]))
    for name, file in tables(root).items():
        _create(db, name, pq.ParquetFile(file).read())
    _insert(
        db, "left_out", typed([{"artifact": asset, "reason": why} for asset, why in reader.damaged.items()])
    )


def _measurements(study: Study, reader: ArtifactReader) -> Iterator[Measurement]:
    for model, part in measured(study):
        asset = model.asset(part)
        made = reader.whole(asset)
        if made is not None and not {ROWS, SAMPLES} <= set(made.files):
            reader.damaged[asset] = "an earlier version of this package made it: run the study again"
        elif made is not None:
            yield Measurement(model, part, reader.directory(asset), made)


def _model_row(model: LeaderboardModel, reader: ArtifactReader) -> dict[str, Any]:
    made = reader.manifest(model.model)
    return {
        "model": model.key,
        "ordering": model.title,
        "position": model.position,
        "data_version": made.data_version if made else None,
    }


def _engine_row(model: ServedModel, made: Manifest) -> dict[str, Any]:
    return {
        "model": model.key,
        "ordering": model.ordering.text if model.ordering else None,
        "form": model.settings.form,
        **{name: made.metadata[name] for name in ("engine", "version", "device", "threads")},
    }


def _insert_measurements(
    db: "duckdb.DuckDBPyConnection", study: Study, root: Path, found: list[Measurement]
) -> None:
    """all_metrics, all_samples and the table answers, from the Parquet files of the measurements."""
    import pyarrow as pa

    manifests = {str(relative_directory(one.asset)): one.manifest for one in found}
    settings, seed = study.evaluation.statistics, study.seed
    rows, samples, answers = [], [], []
    for one in found:
        whose = {"model": one.model.key, "part": one.part}
        model = str(relative_directory(one.model.model))
        about = {
            "data_version": measured_version(one.manifest, model, manifests),
            "run_id": one.manifest.metadata["run_id"],
            "measured_at": one.manifest.created_at,
        }
        figures = rows_with_intervals(
            root, one.asset, one.directory, one.manifest.data_version, settings, seed
        )
        rows.append(_read(figures, whose | about))
        samples.append(_read(one.directory / SAMPLES, whose))
        if one.part == "answers":
            given = _read(one.directory / ANSWERS_FILE, {"model": one.model.key})
            answers.append(given.add_column(1, "position", pa.array(range(len(given)), pa.int64())))
    _insert(db, "all_metrics", pa.concat_tables(rows))
    _insert(db, "all_samples", pa.concat_tables(samples))
    if answers:
        _create(db, "answers", pa.concat_tables(answers), "* REPLACE (to_json(expected) AS expected)")


def _read(file: Path, about: Mapping[str, str | None]) -> "pa.Table":
    """A Parquet file with the same words beside each of its rows, before its own columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file).read()
    for name, value in reversed(list(about.items())):
        table = table.add_column(0, name, pa.repeat(pa.scalar(value, pa.string()), len(table)))
    return table


def _insert(db: "duckdb.DuckDBPyConnection", name: str, content: "pa.Table") -> None:
    """Rows into one of TABLES, column by name."""
    if content.num_rows:
        db.register("content", content)
        db.execute(f"INSERT INTO {name} BY NAME SELECT * FROM content")
        db.unregister("content")


def _create(db: "duckdb.DuckDBPyConnection", name: str, content: "pa.Table", columns: str = "*") -> None:
    """A table of its own."""
    db.register("content", content)
    db.execute(f'CREATE TABLE "{name}" AS SELECT {columns} FROM content')
    db.unregister("content")
