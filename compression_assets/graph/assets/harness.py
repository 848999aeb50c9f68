"""`harness_<model>`: the tasks of lm-evaluation-harness that the study names, on every model."""

import dagster as dg

from compression_assets.evaluation.harness import HarnessSettings, made_of
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.graph.assets.artifact import BuildContext
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.measured_asset import measured_asset, measurement
from compression_assets.graph.assets.memory import of_scoring
from compression_assets.store.reports import StepReport
from compression_assets.study.leaderboard_models import LeaderboardModel, leaderboard_models
from compression_assets.study.model import Study

PART = "harness"


def harness_assets(study: Study) -> list[dg.AssetsDefinition]:
    """One a model; none in a study that names no tasks."""
    settings = study.evaluation.harness
    return [_harness_asset(study, model, settings) for model in leaderboard_models(study)] if settings else []


def _harness_asset(study: Study, model: LeaderboardModel, settings: HarnessSettings) -> dg.AssetsDefinition:
    def measure(place: BuildContext) -> tuple[list[MetricRow], list[Sample], StepReport]:
        from compression_assets.evaluation.harness import run_tasks

        rows, samples = run_tasks(place.inputs[model.model], settings, study.seed, place.device)
        shown = ", ".join(f"{row.metric} {row.value:.3f}" for row in rows[:3] if row.value is not None)
        return rows, samples, StepReport(metadata={"summary": shown})

    artifact = measurement(
        model,
        PART,
        measure,
        settings=settings.model_dump(mode="json") | {"made_of": made_of(settings)},
        code=("compression_assets.evaluation.harness", *format_code(study, model.path)),
        inputs=(model.model,),
        seed=study.seed,
        memory=of_scoring(model.model, study),
    )
    about = f"{', '.join(settings.tasks)} of lm-evaluation-harness on {model.model}"
    return measured_asset(study, model, artifact, group=PART, about=about)
