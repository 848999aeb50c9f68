"""What a study comes to: the leaderboard, and the paper's table to set it beside."""

import csv
from importlib import resources
from typing import Any

import dagster as dg

from compression_assets.evaluation.metrics import in_order
from compression_assets.graph.assets.artifact import tracked
from compression_assets.graph.resources.storage import StudyStorage
from compression_assets.reporting.leaderboard import table
from compression_assets.reporting.read import read_results
from compression_assets.study.leaderboard_models import measurements, subjects
from compression_assets.study.model import Study
from compression_assets.study.names import OWNERS, relative_directory
from compression_assets.tables import markdown

SAME_PRECISION = "same_precision"


def report_assets(study: Study) -> list[dg.AssetsDefinition]:
    @dg.asset(
        group_name="report",
        description="Table 1 of the paper (arXiv 2511.19495), in DuckDB table paper_table_1.",
        kinds={"duckdb"},
        tags={"stage": "report"},
        owners=OWNERS,
    )
    def paper_table_1(context: dg.AssetExecutionContext, storage: StudyStorage) -> dg.MaterializeResult:
        with tracked(context, storage, "paper_table_1"):
            rows = read_paper_table()
            storage.database.write_table("paper_table_1", rows)
        return dg.MaterializeResult(metadata={"rows": len(rows), "table": _table(rows)})

    @dg.asset(
        deps=measurements(study),
        group_name="report",
        description="One row a model, named as in the paper's Table 1: DuckDB view leaderboard.",
        kinds={"duckdb"},
        tags={"stage": "report"},
        owners=OWNERS,
        check_specs=[dg.AssetCheckSpec(SAME_PRECISION, asset="leaderboard")],
    )
    def leaderboard(context: dg.AssetExecutionContext, storage: StudyStorage) -> dg.MaterializeResult:
        with tracked(context, storage, "leaderboard"):
            nodes = [node.key for node in study.nodes.values()]
            merged = storage.database.keep_models(
                [subject.key for subject in subjects(study)],
                [*nodes, "teacher", *(subject.key for subject in subjects(study) if not subject.ordering)],
            )
            shown: dict[str, Any] = {"waiting_writes": merged.waiting, "held_up_by": merged.why}
            if not merged.waiting:
                results = read_results(study, storage.artifacts.root, storage.database)
                columns, rows = table(results, in_order(results.measured))
                shown = {"rows": len(rows), "leaderboard": dg.MetadataValue.md(markdown(columns, rows))}
        return dg.MaterializeResult(
            check_results=[_same_precision(study, storage)],
            metadata={
                **shown,
                "sql": dg.MetadataValue.md("`SELECT * FROM leaderboard`"),
                "database": dg.MetadataValue.path(str(storage.database.file)),
            },
        )

    return [paper_table_1, leaderboard]


def _same_precision(study: Study, storage: StudyStorage) -> dg.AssetCheckResult:
    """A warning when models of one leaderboard were scored in different formats, on machines that differ."""
    found: dict[str, list[str]] = {}
    for subject in subjects(study):
        key = subject.asset("metrics")
        manifest = storage.artifacts.manifest(storage.artifacts.root / relative_directory(key), key)
        if manifest is None:  # not measured yet: the leaderboard is read partly filled
            continue
        found.setdefault(manifest.metadata["precision"], []).append(subject.key)
    detail = "; ".join(f"{precision}: {', '.join(models)}" for precision, models in found.items())
    return dg.AssetCheckResult(
        check_name=SAME_PRECISION,
        passed=len(found) <= 1,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"detail": dg.MetadataValue.text(detail)},
    )


def read_paper_table() -> list[dict[str, Any]]:
    """The ten rows of Table 1; `size_mib` is what the paper calls MB (its figures are MiB)."""
    text = (resources.files("compression_assets") / "data" / "paper_table_1.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    wanted = ("model", "g_eval", "prompt_alignment", "clarity", "size_mib", "perplexity")
    rows = []
    for raw in csv.DictReader(lines):
        raw["size_mib"] = raw["size_mb"]
        rows.append({name: raw[name] if name == "model" else float(raw[name]) for name in wanted})
    return rows


def _table(rows: list[dict[str, Any]]) -> Any:
    return dg.MetadataValue.md(markdown(list(rows[0]), [tuple(row.values()) for row in rows]))
