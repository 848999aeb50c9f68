"""The asset `plan`: what the study will come to, as a table beside the graph. The figures are made in `planning`."""

from typing import Any

import dagster as dg

from compression_assets.errors import StudyError
from compression_assets.graph.assets.report_asset import Outcome, report_asset, warning
from compression_assets.graph.resources import StudyStorage
from compression_assets.store.tables import write_table
from compression_assets.study.model import Study
from compression_assets.study.names import PLAN

FITS = "every_step_fits"


def plan_asset(study: Study) -> dg.AssetsDefinition:
    """Light: no weight is fetched and nothing waits for it. A study that cannot be planned gets a warning."""

    def compute(storage: StudyStorage, _: Any) -> Outcome:
        from compression_assets.planning.devices import device
        from compression_assets.planning.plan import default_device, make_plan
        from compression_assets.planning.summary import as_markdown, database_rows

        root = storage.artifacts.root
        try:
            made = make_plan(study, device(default_device(study)), storage.downloads, root)
        except StudyError as error:
            return Outcome({}, checks=(warning(FITS, False, str(error)),))
        write_table(root, PLAN, database_rows(made))
        return Outcome(
            {
                "plan": dg.MetadataValue.md(as_markdown(made)),
                "device": made.device.name,
                "hours": round(made.seconds / 3600, 2),
                "disk_gib": round(made.disk / 2**30, 2),
            },
            checks=(warning(FITS, not made.misfits, "; ".join(made.misfits) or "every step fits"),),
        )

    return report_asset(
        study,
        PLAN,
        compute,
        description="Size, memory, tokens, time and disk of every model, predicted without its weights.",
        checks=(FITS,),
        priority={"dagster/priority": "20"},
    )
