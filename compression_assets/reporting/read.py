"""What is known about a study, read from the database (read-only) and the manifests. Nothing is drawn here.

Only what belongs to the study as it stands now is read: see `current`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError, next_command
from compression_assets.evaluation.comparisons import ratio_intervals
from compression_assets.evaluation.judging.judges import judge_name
from compression_assets.evaluation.metrics import Metric
from compression_assets.evaluation.rows import Sample
from compression_assets.reporting.current import another_recipe, outdated
from compression_assets.reporting.judged_by import judge_of, shown_metric, weaknesses
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.study.leaderboard_models import leaderboard_models, measured, served_models
from compression_assets.study.model import Study
from compression_assets.study.names import model_key, relative_directory
from compression_assets.study.orderings import BASE, Node

Row = dict[str, Any]

UNTRUSTED = "UNTRUSTED"
"""How the note of a metric begins whose judge failed its own test."""

OPTIONAL_TABLES = (
    "comparisons",
    "judge_calibration",
    "judge_agreement",
    "step_diagnostics",
    "layer_diagnostics",
    "leaderboard_seeds",
    "search_trials",
    "search_outcome",
)
"""Tables and views that only some studies fill; the report says 'not measured' where one has no rows."""


class NothingMeasured(StudyError):
    """The study has no figures yet, or only such as belong to an earlier state of it."""


@dataclass(frozen=True)
class Results:
    """The figures of a study.

    metrics: model -> metric -> row of metrics.<model> (value, lo, hi, unit, n, note), in the leaderboard's order.
    items: model -> metric -> how many items have a value, for metrics that have items.
    names: model -> its ordering as written. paper: model -> row of paper_table_1.
    served: the same as metrics, of what engines serve. engines: model of these -> row of the table serving.
    comparisons: rows of that table among what is in `metrics`. outdated: model -> why its figures are left out.
    damaged: directory below the study's root ("models/p_kd") -> why what is there cannot be read.
    manifests: the same directories -> manifest, for every complete artifact.
    """

    study: Study
    metrics: dict[str, dict[str, Row]]
    items: dict[str, dict[str, int]]
    names: dict[str, str]
    paper: dict[str, Row]
    served: dict[str, dict[str, Row]]
    engines: dict[str, Row]
    comparisons: list[Row]
    outdated: dict[str, str]
    damaged: dict[str, str]
    manifests: dict[str, Manifest] = field(repr=False)

    @property
    def models(self) -> list[str]:
        """Measured models in the leaderboard's order."""
        return list(self.metrics)

    @property
    def measured(self) -> set[str]:
        """Metrics that some model has a value for."""
        return {
            name for rows in self.metrics.values() for name, row in rows.items() if row["value"] is not None
        }

    @property
    def confidence(self) -> str:
        """Of every interval over items: "95 %"."""
        return f"{100 * self.study.evaluation.statistics.confidence:g} %"

    @property
    def untrusted(self) -> dict[str, str]:
        """Metric -> what its note says against the judge that scored it."""
        return {
            name: row["note"]
            for rows in self.metrics.values()
            for name, row in rows.items()
            if is_untrusted(row)
        }

    @property
    def judge(self) -> str:
        """Name of the judge that gave the judged scores, "" where there are none."""
        return next((name for rows in self.metrics.values() if (name := judge_of(rows))), "")

    @property
    def weaknesses(self) -> dict[str, str]:
        """Metric -> what its note says a trusted judge mistakes."""
        return {name: note for rows in self.metrics.values() for name, note in weaknesses(rows).items()}

    def metric(self, name: str) -> Metric:
        """A metric as this study shows it, with how it was judged."""
        return shown_metric(name, self.study.evaluation.judge)

    @property
    def rows(self) -> list[Row]:
        """A row a model: its key, its ordering and the value of every metric."""
        return [
            {"model": model, "ordering": self.name(model)}
            | {name: row["value"] for name, row in rows.items()}
            for model, rows in self.metrics.items()
        ]

    def name(self, model: str) -> str:
        """A model's ordering as it is written: "P-KD-Q" of "p_kd_q"."""
        return self.names.get(model, model)

    def value(self, model: str, metric: str) -> float | None:
        """A metric of a model, None where it is not measured."""
        row = self.metrics.get(model, {}).get(metric)
        return None if row is None else row["value"]

    def interval(self, model: str, metric: str) -> tuple[float, float] | None:
        """The interval of a metric, None where there is none."""
        row = self.metrics.get(model, {}).get(metric, {})
        lo, hi = row.get("lo"), row.get("hi")
        return None if lo is None or hi is None else (lo, hi)

    def node_manifest(self, node: Node) -> Manifest | None:
        return self.manifests.get(str(relative_directory(model_key(node))))


@dataclass(frozen=True)
class ReportData(Results):
    """The figures, and what else the report shows.

    tables: name -> rows, for every table in OPTIONAL_TABLES.
    answers: model -> rows of its answers.parquet, for the questions that are shown.
    to_base: model -> interval of its perplexity over the base's, item by item.
    """

    tables: dict[str, list[Row]]
    answers: dict[str, list[Row]] = field(repr=False)
    to_base: dict[str, tuple[float, float]] = field(default_factory=dict)


def is_untrusted(row: Mapping[str, Any]) -> bool:
    """Whether the judge that scored a row of metrics.<model> failed its own test."""
    return str(row.get("note") or "").startswith(UNTRUSTED)


def read_results(study: Study, root: Path, database: MetricsDatabase) -> Results:
    """Read what was measured of the study so far. root: storage/<study>.

    Raises NothingMeasured while there is nothing.
    """
    return _results(study, root, _Tables(database))


def read_report_data(study: Study, root: Path, database: MetricsDatabase, questions: int = 3) -> ReportData:
    """Read everything that the report shows. questions: how many sample answers. Raises what `read_results` does."""
    tables = _Tables(database)
    results = _results(study, root, tables)
    optional = {name: tables.rows(name) for name in OPTIONAL_TABLES}
    optional["comparisons"] = results.comparisons
    optional["judge_agreement"] = _agreement(results, optional["judge_agreement"])
    known = {
        node.key for node in study.nodes.values() if not another_recipe(study, node.path, results.manifests)
    }
    for name in ("step_diagnostics", "layer_diagnostics"):
        optional[name] = [row for row in optional[name] if row["model"] in known]
    return ReportData(
        **{name: getattr(results, name) for name in Results.__dataclass_fields__},
        tables=optional,
        answers=read_answers_of(root, results.models, questions),
        to_base=_to_base(results, tables),
    )


def _to_base(results: Results, tables: "_Tables") -> dict[str, tuple[float, float]]:
    samples: dict[str, list[Sample]] = {}
    for row in tables.rows("all_samples", "model, item, value, weight", "WHERE metric = 'perplexity'"):
        if "perplexity" in results.metrics.get(row["model"], {}):
            samples.setdefault(row["model"], []).append(
                Sample("perplexity", row["item"], row["value"], row["weight"])
            )
    if BASE not in samples:
        return {}
    return ratio_intervals(samples, BASE, results.study.evaluation.statistics, results.study.seed)


def _agreement(results: Results, rows: list[Row]) -> list[Row]:
    """The rows about judges that the study still has; none while any of what they rest on is out of date."""
    judge = results.study.evaluation.judge
    names = {judge_name(other) for other in judge.others} if judge else set()
    return [row for row in rows if row["other"] in names and not results.outdated]


def read_answers_of(root: Path, models: list[str], questions: int) -> dict[str, list[Row]]:
    """The first `questions` answers of every model that has answered."""
    import pyarrow.parquet

    store, found = artifacts_of(root), {}
    for model in models:
        directory = store.local(root / "answers" / model, f"answers_{model}")
        if directory is not None and (file := directory / "answers.parquet").exists():
            found[model] = pyarrow.parquet.read_table(file).slice(0, questions).to_pylist()
    return found


class _Tables:
    """The tables that the database has; one that it lacks has no rows."""

    def __init__(self, database: MetricsDatabase):
        self._database = database
        found = database.query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'main'")
        self._present = {name for (name,) in found[1]}

    def rows(self, table: str, columns: str = "*", rest: str = "") -> list[Row]:
        if table not in self._present:
            return []
        names, values = self._database.query(f'SELECT {columns} FROM "{table}" {rest}')
        return [dict(zip(names, row, strict=True)) for row in values]


def _results(study: Study, root: Path, tables: _Tables) -> Results:
    manifests, damaged = artifacts_of(root).manifests()
    damaged |= {str(relative_directory(row["artifact"])): row["reason"] for row in tables.rows("left_out")}
    left_out = outdated(study, manifests)
    known = {(model.key, part) for model, part in measured(study)} - left_out.keys()
    figures: dict[str, dict[str, Row]] = {}
    for row in tables.rows("all_metrics", rest="ORDER BY metric"):
        if (row["model"], row["part"]) in known:
            figures.setdefault(row["model"], {})[row["metric"]] = row
    models = [model for model in leaderboard_models(study) if model.key in figures]
    metrics = {model.key: figures[model.key] for model in models}
    served = {model.key: figures[model.key] for model in served_models(study) if model.key in figures}
    if not metrics:
        raise NothingMeasured(_why_nothing(study, [*left_out.values(), *damaged.values()]))
    items: dict[str, dict[str, int]] = {model: {} for model in metrics}
    for row in tables.rows("all_samples", "model, metric, count(value) AS items", "GROUP BY model, metric"):
        if row["metric"] in metrics.get(row["model"], {}):
            items[row["model"]][row["metric"]] = row["items"]
    comparisons = [
        row
        for row in tables.rows("comparisons")
        if all(row["metric"] in metrics.get(row[side], {}) for side in ("model_a", "model_b"))
    ]
    reasons: dict[str, str] = {}
    for (key, _), reason in left_out.items():
        reasons.setdefault(key, reason)
    paper = {row["model"]: row for row in tables.rows("paper_table_1")}
    return Results(
        study=study,
        metrics=metrics,
        items=items,
        names={model.key: model.title for model in (*models, *served_models(study))},
        paper=paper,
        served=served,
        engines={row["model"]: row for row in tables.rows("serving") if row["model"] in served},
        comparisons=comparisons,
        outdated=reasons,
        damaged=damaged,
        manifests=manifests,
    )


def _why_nothing(study: Study, reasons: Sequence[str]) -> str:
    if reasons:
        return (
            f"no figure of study {study.name} can be shown as it stands ({reasons[0]}); "
            f"run: {next_command('run')}"
        )
    return (
        f"study {study.name} has no measured model yet, so there is nothing to report; "
        f"run: {next_command('run')}"
    )
