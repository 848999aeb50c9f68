"""The asset `comparisons`: every pair of models and every metric, over the items that both were measured on."""

import time
from dataclasses import asdict

import dagster as dg

from compression_assets.evaluation.comparisons import Comparison, Measured, compare
from compression_assets.graph.assets.artifact import tracked
from compression_assets.graph.assets.measured import read_measured
from compression_assets.graph.resources import StudyStorage
from compression_assets.study.leaderboard_models import leaderboard_models, measurements, parts
from compression_assets.study.model import Study
from compression_assets.study.names import COMPARISONS, OWNERS, relative_directory
from compression_assets.tables import markdown


def comparisons_asset(study: Study) -> dg.AssetsDefinition:
    @dg.asset(
        key=COMPARISONS,
        deps=measurements(study),
        group_name="report",
        description="Paired differences between models with intervals, and which survive Holm's correction: "
        "DuckDB table comparisons.",
        kinds={"duckdb"},
        tags={"stage": "report"},
        owners=OWNERS,
    )
    def comparisons(context: dg.AssetExecutionContext, storage: StudyStorage) -> dg.MaterializeResult:
        started = time.monotonic()
        with tracked(context, storage, COMPARISONS) as outcome:
            rows = compare_all(study, storage)
            merged = storage.database.write_table(COMPARISONS, [asdict(row) for row in rows])
            significant = [row for row in rows if row.significant]
            outcome.update(note=f"{len(significant)} of {len(rows)} differences are significant")
        shown = [
            (row.metric, row.model_a, row.model_b, row.difference, row.lo, row.hi, row.p_holm)
            for row in significant
        ]
        header = ["metric", "model_a", "model_b", "difference", "lo", "hi", "p_holm"]
        return dg.MaterializeResult(
            metadata={
                "rows": len(rows),
                "significant": len(significant),
                "differences": dg.MetadataValue.md(markdown(header, shown)),
                "seconds": round(time.monotonic() - started, 1),
                "waiting_writes": merged.waiting,
            }
        )

    return comparisons


def compare_all(study: Study, storage: StudyStorage) -> list[Comparison]:
    """All metrics that have items, among the models measured so far. A metric without a value is not compared."""
    by_metric: dict[str, dict[str, Measured]] = {}
    for entry in leaderboard_models(study):
        for part in parts(study):
            directory = storage.artifacts.root / relative_directory(entry.asset(part))
            if not directory.exists():
                continue
            rows, samples, _ = read_measured(directory)
            for row in rows:
                own = [sample for sample in samples if sample.metric == row.metric]
                if own and row.value is not None:
                    by_metric.setdefault(row.metric, {})[entry.key] = Measured(row, own)
    settings = study.evaluation.statistics
    return [
        row for metric, models in by_metric.items() for row in compare(metric, models, settings, study.seed)
    ]
