"""`harness_<subject>`: the tasks of lm-evaluation-harness that the study names, on every model, copied into DuckDB."""

import dagster as dg

from compression_assets.evaluation.harness import HarnessSettings, made_of
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.graph.assets.artifact import Artifact, Workplace
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.measured_asset import Measurement, measured_asset
from compression_assets.graph.assets.memory import of_scoring
from compression_assets.graph.resources.storage import StudyStorage
from compression_assets.store.reports import StepReport
from compression_assets.study.leaderboard_models import Subject, subjects
from compression_assets.study.model import Study

PART = "harness"


def harness_assets(study: Study) -> list[dg.AssetsDefinition]:
    """One a subject; none in a study that names no tasks."""
    settings = study.evaluation.harness
    return [_harness_asset(study, subject, settings) for subject in subjects(study)] if settings else []


def _harness_asset(study: Study, subject: Subject, settings: HarnessSettings) -> dg.AssetsDefinition:
    artifact = Artifact(
        asset=subject.asset(PART),
        settings=settings.model_dump(mode="json") | {"made_of": made_of(settings)},
        code=("compression_assets.evaluation.harness", *format_code(study, subject.path)),
        inputs=(subject.model,),
        seed=study.seed,
        parent=subject.model,
        path=subject.path,
        needs=of_scoring(subject.model, study),
    )

    def measure(place: Workplace, storage: StudyStorage) -> tuple[list[MetricRow], list[Sample], StepReport]:
        from compression_assets.evaluation.harness import run_tasks

        rows, samples = run_tasks(place.inputs[subject.model], settings, study.seed, place.device)
        shown = ", ".join(f"{row.metric} {row.value:.3f}" for row in rows[:3] if row.value is not None)
        return rows, samples, StepReport(metadata={"summary": shown})

    about = f"{', '.join(settings.tasks)} of lm-evaluation-harness on {subject.model}"
    return measured_asset(study, subject, artifact, Measurement(PART, PART, about, measure))
