"""The asset `tracking`: what the study has made so far, in the tracker that its file names."""

from typing import Any

import dagster as dg

from compression_assets.graph.assets.report_asset import Outcome, report_asset
from compression_assets.graph.resources import StudyStorage
from compression_assets.reporting.database import up_to_date
from compression_assets.study.leaderboard_models import measurements
from compression_assets.study.model import Study
from compression_assets.study.names import TRACKING


def tracking_assets(study: Study) -> list[dg.AssetsDefinition]:
    """None where the study names no tracker. No other asset waits for it: a tracker that is away costs no results."""
    if study.tracking is None:
        return []

    def compute(storage: StudyStorage, _: Any) -> Outcome:
        from compression_assets.reporting.read import read_results
        from compression_assets.takeaway.mlflow_runs import track

        root = storage.artifacts.root
        database, _behind = up_to_date(study, root)
        done = track(study, root, read_results(study, root, database))
        return Outcome(
            {"experiment": done.experiment, "runs": done.runs, "new": done.new},
            note=f"{done.new} of {done.runs} runs are new",
            cached=done.new == 0,
        )

    return [
        report_asset(
            study,
            TRACKING,
            compute,
            deps=measurements(study),
            description=f"Every model of the study as a run in MLflow at {study.tracking.mlflow}.",
            kinds=frozenset({"mlflow"}),
        )
    ]
