"""The asset `comparisons`: every pair of models and every metric, over the items that both were measured on."""

import time
from dataclasses import asdict
from typing import Any

import dagster as dg

from compression_assets.evaluation.comparisons import Comparison, Measured, compare
from compression_assets.evaluation.measured import read_measured
from compression_assets.graph.assets.report_asset import Outcome, report_asset
from compression_assets.graph.resources import StudyStorage
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.store.tables import write_table
from compression_assets.study.leaderboard_models import leaderboard_models, measurements, parts
from compression_assets.study.model import Study
from compression_assets.study.names import COMPARISONS, relative_directory
from compression_assets.tables import markdown


def comparisons_asset(study: Study) -> dg.AssetsDefinition:
    def compute(storage: StudyStorage, _: Any) -> Outcome:
        started = time.monotonic()
        store = storage.artifacts
        rows = compare_all(study, store)
        write_table(store.root, COMPARISONS, [asdict(row) for row in rows])
        significant = [row for row in rows if row.significant]
        columns = ("metric", "model_a", "model_b", "difference", "lo", "hi", "p_holm")
        shown = markdown(columns, [[getattr(row, name) for name in columns] for row in significant])
        return Outcome(
            {
                "rows": len(rows),
                "significant": len(significant),
                "differences": dg.MetadataValue.md(shown),
                "seconds": round(time.monotonic() - started, 1),
            },
            note=f"{len(significant)} of {len(rows)} differences are significant",
        )

    return report_asset(
        study,
        COMPARISONS,
        compute,
        deps=measurements(study),
        description="Paired differences between models with intervals, and which survive Holm's correction: "
        "DuckDB table comparisons.",
    )


def compare_all(study: Study, store: ArtifactStore) -> list[Comparison]:
    """All metrics that have items, among the models measured so far. A metric without a value is not compared."""
    by_metric: dict[str, dict[str, Measured]] = {}
    for model in leaderboard_models(study):
        for part in parts(study):
            asset = model.asset(part)
            directory = store.local(store.root / relative_directory(asset), asset)
            if directory is None:
                continue
            rows, samples = read_measured(directory)
            for row in rows:
                own = [sample for sample in samples if sample.metric == row.metric]
                if own and row.value is not None:
                    by_metric.setdefault(row.metric, {})[model.key] = Measured(row, own)
    settings = study.evaluation.statistics
    return [
        row for metric, models in by_metric.items() for row in compare(metric, models, settings, study.seed)
    ]
