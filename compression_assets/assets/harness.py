"""`harness_<subject>`: the tasks of lm-evaluation-harness that the study names, on every model, copied into DuckDB."""

import dagster as dg

from compression_assets.assets.artifact import Artifact, ArtifactConfig, Workplace, as_failure, make, result
from compression_assets.assets.layout import OWNERS, POOL, relative_directory
from compression_assets.assets.measured import record, write_measured
from compression_assets.assets.needs import of_scoring
from compression_assets.assets.priority import FILL, PRIORITY
from compression_assets.assets.subjects import Subject, subjects
from compression_assets.evaluation.harness import HarnessSettings
from compression_assets.resources.gpu import Gpu
from compression_assets.resources.storage import StudyStorage
from compression_assets.study import Study
from compression_assets.techniques.step import StepReport

PART = "harness"


def harness_assets(study: Study) -> list[dg.AssetsDefinition]:
    """One a subject; none in a study that names no tasks."""
    settings = study.evaluation.harness
    return [_harness_asset(study, subject, settings) for subject in subjects(study)] if settings else []


def _harness_asset(study: Study, subject: Subject, settings: HarnessSettings) -> dg.AssetsDefinition:
    artifact = Artifact(
        asset=subject.asset(PART),
        settings=settings.model_dump(mode="json"),
        code="compression_assets.evaluation.harness",
        inputs=(subject.model,),
        seed=study.seed,
        parent=subject.model,
        path=subject.path,
        needs=of_scoring(subject.model, study),
    )

    @dg.asset(
        key=artifact.asset,
        deps=list(artifact.inputs),
        group_name="harness",
        description=f"{', '.join(settings.tasks)} of lm-evaluation-harness on {subject.model}, in DuckDB table "
        f"metrics.{subject.key}.",
        kinds={"duckdb"},
        tags={"stage": PART, "ordering": subject.key},
        owners=OWNERS,
        code_version=artifact.code_version,
        op_tags={PRIORITY: FILL},
        pool=POOL,
    )
    def harness(
        context: dg.AssetExecutionContext, config: ArtifactConfig, storage: StudyStorage, gpu: Gpu
    ) -> dg.MaterializeResult:
        def build(place: Workplace) -> StepReport:
            from compression_assets.evaluation.harness import run_tasks

            rows, samples = run_tasks(place.inputs[subject.model], settings, study.seed, place.device)
            write_measured(place.output, rows, samples, context.run_id)
            shown = ", ".join(f"{row.metric} {row.value:.3f}" for row in rows[:3] if row.value is not None)
            return StepReport(metadata={"summary": shown})

        manifest, cached = make(context, artifact, build, storage, gpu, config.rebuild)
        with as_failure(artifact.asset):
            shown = record(study, storage, subject, PART, manifest)
        return result(manifest, cached, storage.artifacts.root / relative_directory(artifact.asset), **shown)

    return harness
