"""The asset `leaderboard`, and the paper's table to set it beside."""

from typing import Any

import dagster as dg

from compression_assets.graph.assets.report_asset import Outcome, report_asset, warning
from compression_assets.graph.resources import StudyStorage
from compression_assets.reporting.database import refresh
from compression_assets.reporting.leaderboard import read_leaderboard
from compression_assets.reporting.paper_table import read_paper_table
from compression_assets.study.leaderboard_models import leaderboard_models, measurements
from compression_assets.study.model import Study
from compression_assets.study.names import relative_directory
from compression_assets.tables import markdown

SAME_PRECISION = "same_precision"


def leaderboard_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`paper_table_1` and `leaderboard`."""
    return [_paper_table(study), _leaderboard(study)]


def _paper_table(study: Study) -> dg.AssetsDefinition:
    def compute(storage: StudyStorage, _: Any) -> Outcome:
        rows = read_paper_table()
        table = markdown(list(rows[0]), [tuple(row.values()) for row in rows])
        return Outcome({"rows": len(rows), "table": dg.MetadataValue.md(table)})

    return report_asset(
        study,
        "paper_table_1",
        compute,
        description="Table 1 of the paper (arXiv 2511.19495), in DuckDB table paper_table_1.",
    )


def _leaderboard(study: Study) -> dg.AssetsDefinition:
    def compute(storage: StudyStorage, _: Any) -> Outcome:
        shown: dict[str, Any] = {"held_up_by": refresh(study, storage.artifacts.root)}
        if not shown["held_up_by"]:
            columns, rows = read_leaderboard(storage.database)
            shown |= {"rows": len(rows), "leaderboard": dg.MetadataValue.md(markdown(columns, rows))}
            if left_out := storage.database.query("SELECT artifact, reason FROM left_out")[1]:
                shown["left_out"] = dg.MetadataValue.md(markdown(("artifact", "reason"), left_out))
        return Outcome(
            {
                **shown,
                "sql": dg.MetadataValue.md("`SELECT * FROM leaderboard`"),
                "database": dg.MetadataValue.path(str(storage.database.file)),
            },
            checks=(_same_precision(study, storage),),
        )

    return report_asset(
        study,
        "leaderboard",
        compute,
        deps=measurements(study),
        description="One row a model, named as in the paper's Table 1: DuckDB view leaderboard.",
        checks=(SAME_PRECISION,),
    )


def _same_precision(study: Study, storage: StudyStorage) -> dg.AssetCheckResult:
    """A warning when models of one leaderboard were scored in different formats, on machines that differ."""
    found: dict[str, list[str]] = {}
    for model in leaderboard_models(study):
        key = model.asset("metrics")
        manifest = storage.artifacts.manifest(storage.artifacts.root / relative_directory(key), key)
        if manifest is None:  # not measured yet: the leaderboard is read partly filled
            continue
        found.setdefault(manifest.metadata["precision"], []).append(model.key)
    detail = "; ".join(f"{precision}: {', '.join(models)}" for precision, models in found.items())
    return warning(SAME_PRECISION, len(found) <= 1, detail)
