"""Everything that the report shows, read from the database (read-only) and the manifests. Nothing is drawn here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError, next_command
from compression_assets.store.artifact_store import MANIFEST, ArtifactStore, Manifest
from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.study.model import Study
from compression_assets.study.names import model_key, relative_directory
from compression_assets.study.orderings import Node

Row = dict[str, Any]

OPTIONAL_TABLES = (
    "comparisons",
    "judge_calibration",
    "step_diagnostics",
    "layer_diagnostics",
    "leaderboard_seeds",
)
"""Tables and views that only some studies fill; the report says 'not measured' where one has no rows."""


@dataclass(frozen=True)
class ReportData:
    """What is known about a study.

    metrics: model -> metric -> row of metrics.<model> (value, lo, hi, unit, n, note where the table has them).
    paper: model -> row of paper_table_1. tables: name -> rows, for every table in OPTIONAL_TABLES.
    manifests: directory below the study's root ("models/p_kd") -> manifest, for every complete artifact.
    answers: model -> rows of its answers.parquet, for the questions that are shown.
    """

    study: Study
    metrics: dict[str, dict[str, Row]]
    paper: dict[str, Row]
    lineage: list[Row]
    tables: dict[str, list[Row]]
    manifests: dict[str, Manifest] = field(repr=False)
    answers: dict[str, list[Row]] = field(default_factory=dict, repr=False)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Measured models in the leaderboard's order."""
        return list(self.metrics)

    def name(self, model: str) -> str:
        """A model's ordering as it is written: "P-KD-Q" of "p_kd_q"."""
        return self.names.get(model, model)

    def value(self, model: str, metric: str) -> float | None:
        """A metric of a model, None where it is not measured."""
        row = self.metrics.get(model, {}).get(metric)
        return None if row is None else row["value"]

    def interval(self, model: str, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of a metric, None where there is none."""
        row = self.metrics.get(model, {}).get(metric, {})
        lo, hi = row.get("lo"), row.get("hi")
        return None if lo is None or hi is None else (lo, hi)

    def node_manifest(self, node: Node) -> Manifest | None:
        return self.manifests.get(str(relative_directory(model_key(node))))


def read_report_data(study: Study, root: Path, database: MetricsDatabase, questions: int = 3) -> ReportData:
    """Read what a study has come to so far.

    root: storage/<study>. questions: how many sample answers are shown. Raises StudyError while nothing is measured.
    """
    found = database.query("SELECT table_schema, table_name FROM information_schema.tables")[1]
    present = {(schema, name) for schema, name in found}

    def rows(schema: str, table: str, order: str = "") -> list[Row]:
        if (schema, table) not in present:
            return []
        columns, values = database.query(f'SELECT * FROM {schema}."{table}" {order}')
        return [dict(zip(columns, row, strict=True)) for row in values]

    models = rows("main", "models", "ORDER BY position")
    if not models:
        raise StudyError(
            f"study {study.name} has no measured model yet, so there is nothing to report; run: {next_command('run')}"
        )
    keys = [model["model"] for model in models]
    return ReportData(
        study=study,
        metrics={key: {row["metric"]: row for row in rows("metrics", key)} for key in keys},
        paper={row["model"]: row for row in rows("main", "paper_table_1")},
        lineage=rows("main", "lineage", "ORDER BY step, model"),
        tables={name: rows("main", name) for name in OPTIONAL_TABLES},
        manifests=read_manifests(root),
        answers=read_answers_of(root, keys, questions),
        names={model["model"]: model["ordering"] for model in models},
    )


def read_manifests(root: Path) -> dict[str, Manifest]:
    """The manifest of every complete artifact, by its directory below the study's root."""
    store = ArtifactStore(root)
    found = {}
    for file in sorted(root.glob(f"*/*/{MANIFEST}")):
        directory = file.parent
        manifest = None if directory.name.startswith(".") else store.manifest(directory, directory.name)
        if manifest is not None:
            found[str(directory.relative_to(root))] = manifest
    return found


def read_answers_of(root: Path, models: list[str], questions: int) -> dict[str, list[Row]]:
    """The first `questions` answers of every model that has answered."""
    import pyarrow.parquet

    found = {}
    for model in models:
        file = root / "answers" / model / "answers.parquet"
        if file.exists():
            found[model] = pyarrow.parquet.read_table(file).slice(0, questions).to_pylist()
    return found
