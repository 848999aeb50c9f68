"""The asset `leaderboard`, and the paper's table to set it beside."""

from typing import Any

import dagster as dg

from compression_assets.evaluation.end_of_turn import METRIC, unlearned
from compression_assets.evaluation.measured import ROWS, read_rows
from compression_assets.evaluation.metrics import in_order
from compression_assets.graph.assets.report_asset import Outcome, report_asset, warning
from compression_assets.graph.resources import StudyStorage
from compression_assets.reporting.database import up_to_date
from compression_assets.reporting.leaderboard import table
from compression_assets.reporting.paper_table import read_paper_table
from compression_assets.reporting.read import read_results
from compression_assets.store.object_store import store_of
from compression_assets.study.leaderboard_models import leaderboard_models, measurements, served_models
from compression_assets.study.model import Study
from compression_assets.study.names import SERVED, relative_directory
from compression_assets.study.orderings import BASE
from compression_assets.tables import markdown

SAME_PRECISION = "same_precision"
ENDS_ITS_TURNS = "ends_its_turns"


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
        root = storage.artifacts.root
        database, behind = up_to_date(study, root, patience=0.0)
        shown: dict[str, Any] = {"held_up_by": behind}
        if not behind:
            results = read_results(study, root, database)
            columns, rows = table(results, in_order(results.measured))
            shown |= {"rows": len(rows), "leaderboard": dg.MetadataValue.md(markdown(columns, rows))}
            if results.damaged:
                damaged = markdown(("artifact", "reason"), list(results.damaged.items()))
                shown["left_out"] = dg.MetadataValue.md(damaged)
        return Outcome(
            {
                **shown,
                "sql": dg.MetadataValue.md("`SELECT * FROM leaderboard`"),
                **({} if store_of(root) else {"database": dg.MetadataValue.path(str(storage.database.file))}),
            },
            checks=(_same_precision(study, storage), _ends_its_turns(study, storage)),
        )

    return report_asset(
        study,
        "leaderboard",
        compute,
        deps=[*measurements(study), *(model.asset(SERVED) for model in served_models(study))],
        description="One row a model, named as in the paper's Table 1: DuckDB view leaderboard.",
        checks=(SAME_PRECISION, ENDS_ITS_TURNS),
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


def _ends_its_turns(study: Study, storage: StudyStorage) -> dg.AssetCheckResult:
    """A warning when training has taught a model to go on where a message ends."""
    store = storage.artifacts
    values: dict[str, float | None] = {}
    for model in leaderboard_models(study):
        asset = model.asset("metrics")
        directory = store.local(store.root / relative_directory(asset), asset)
        if directory is None or not (directory / ROWS).is_file():  # not measured yet
            continue
        rows = read_rows(directory / ROWS)
        values[model.key] = next((row.value for row in rows if row.metric == METRIC), None)
    low = unlearned(values, BASE)
    named = ", ".join(f"{model} {value:.4f}" for model, value in low.items())
    reference = values.get(BASE)
    detail = "the base is not measured" if reference is None else f"the base's is {reference:.4f}"
    return warning(ENDS_ITS_TURNS, not low, f"{METRIC} below half of the base's: {named or 'none'}; {detail}")
