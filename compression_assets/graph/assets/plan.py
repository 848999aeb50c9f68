"""The asset `plan`: what the study will come to, as a table beside the graph. The figures are made in `planning`."""

import dagster as dg

from compression_assets.errors import StudyError
from compression_assets.graph.assets.artifact import tracked
from compression_assets.graph.resources import StudyStorage
from compression_assets.study.model import Study
from compression_assets.study.names import OWNERS, PLAN

FITS = "every_step_fits"


def plan_asset(study: Study) -> dg.AssetsDefinition:
    """Light: no weight is fetched and nothing waits for it. A study that cannot be planned gets a warning."""

    @dg.asset(
        key=PLAN,
        group_name="report",
        description="Size, memory, tokens, time and disk of every model, predicted without its weights.",
        kinds={"duckdb"},
        tags={"stage": "report"},
        owners=OWNERS,
        check_specs=[dg.AssetCheckSpec(FITS, asset=PLAN)],
        op_tags={"dagster/priority": "20"},
    )
    def plan(context: dg.AssetExecutionContext, storage: StudyStorage) -> dg.MaterializeResult:
        from compression_assets.planning.devices import device
        from compression_assets.planning.plan import default_device, make_plan
        from compression_assets.planning.summary import as_markdown, database_rows

        with tracked(context, storage, PLAN):
            try:
                made = make_plan(
                    study, device(default_device(study)), storage.downloads, storage.artifacts.root
                )
            except StudyError as error:
                return dg.MaterializeResult(check_results=[_check(False, str(error))])
            storage.database.write_table(PLAN, database_rows(made))
        return dg.MaterializeResult(
            check_results=[_check(not made.misfits, "; ".join(made.misfits) or "every step fits")],
            metadata={
                "plan": dg.MetadataValue.md(as_markdown(made)),
                "device": made.device.name,
                "hours": round(made.seconds / 3600, 2),
                "disk_gib": round(made.disk / 2**30, 2),
            },
        )

    return plan


def _check(passed: bool, detail: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=FITS,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"detail": dg.MetadataValue.text(detail)},
    )
