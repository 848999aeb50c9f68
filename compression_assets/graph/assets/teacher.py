"""The teacher and its logits: computed once, read by every distillation step."""

from dataclasses import replace
from functools import partial

import dagster as dg

from compression_assets.graph.assets.artifact import Artifact, BuildContext
from compression_assets.graph.assets.artifact_asset import Shown, artifact_asset
from compression_assets.graph.assets.memory import of_correction, of_logits
from compression_assets.graph.assets.model_asset import model_asset, released_model_asset
from compression_assets.graph.assets.priority import FIRST, PRIORITY
from compression_assets.planning.fit import refuse_directory
from compression_assets.store.reports import StepReport
from compression_assets.study.model import CorrectedTeacher, ModelTeacher, Study
from compression_assets.study.names import (
    BASE_MODEL,
    DATASETS,
    TEACHER_LOGITS,
    TEACHER_MODEL,
)
from compression_assets.training.teacher.teacher_logits import ONE_TEMPERATURE

TAGS = {"stage": "teacher"}


def teacher_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`teacher_model` and `teacher_logits`; none in a study that never distils."""
    if not study.distils or study.teacher is None:
        return []
    teacher = study.teacher
    model = _corrected(study, teacher) if isinstance(teacher, CorrectedTeacher) else _fetched(study, teacher)
    return [model, _logits(study)]


def _corrected(study: Study, teacher: CorrectedTeacher) -> dg.AssetsDefinition:
    data = DATASETS["teacher"]

    def build(place: BuildContext) -> StepReport:
        from compression_assets.training.finetuning import finetune_teacher
        from compression_assets.weights.checkpoints import check_size

        report = finetune_teacher(
            place.inputs[BASE_MODEL],
            place.output,
            place.inputs[data],
            teacher.finetune,
            study.seed,
            place.device,
            place.report,
            scratch=place.scratch,
            devices=place.devices,
        )
        return replace(report, checks=(*report.checks, check_size(place.output)))

    artifact = Artifact(
        asset=TEACHER_MODEL,
        build=build,
        settings=teacher.model_dump(mode="json"),
        code=("compression_assets.training.finetuning",),
        inputs=(BASE_MODEL, data),
        seed=study.seed,
        parent=BASE_MODEL,
        checks=("weights_finite", "size_as_asked"),
        memory=of_correction(teacher.finetune, study),
        gpus=study.training.gpus,
    )
    return model_asset(
        study,
        artifact,
        group="teacher",
        description="The unpruned base model fine-tuned on its own slice of the chat data (teacher correction).",
        tags=TAGS,
        priority={PRIORITY: FIRST},
    )


def _fetched(study: Study, teacher: ModelTeacher) -> dg.AssetsDefinition:
    return released_model_asset(
        study,
        TEACHER_MODEL,
        teacher.source,
        group="teacher",
        description="The teacher as it was released.",
        tags=TAGS,
        fits=partial(refuse_directory, study, "teacher.source"),
    )


def _logits(study: Study) -> dg.AssetsDefinition:
    data = DATASETS["distillation"]
    temperature = study.distillation_temperature

    def build(place: BuildContext) -> StepReport:
        from compression_assets.training.teacher.teacher_logits import (
            check_same_tokenizer,
            write_teacher_logits,
        )
        from compression_assets.weights.checkpoints import read_config

        check_same_tokenizer(place.inputs[TEACHER_MODEL], place.inputs[BASE_MODEL])
        teacher = place.storage.artifacts.require(
            place.inputs[TEACHER_MODEL], TEACHER_MODEL, TEACHER_LOGITS, verify=False
        )
        metadata = write_teacher_logits(
            place.inputs[TEACHER_MODEL],
            place.inputs[data],
            place.output,
            study.teacher_logits,
            temperature=temperature,
            vocabulary=read_config(place.inputs[BASE_MODEL]).vocab_size,
            teacher_fingerprint=teacher.data_version,
            device=place.device,
            devices=place.devices,
            report=place.report,
            scratch=place.scratch,
        )
        return StepReport(metadata=metadata)

    artifact = Artifact(
        asset=TEACHER_LOGITS,
        build=build,
        settings={
            **study.teacher_logits.model_dump(mode="json"),
            # Other codings keep whole distributions, whatever temperature they are asked for later.
            "temperature": temperature if study.teacher_logits.coding in ONE_TEMPERATURE else None,
        },
        code=("compression_assets.training.teacher.teacher_logits",),
        inputs=(TEACHER_MODEL, BASE_MODEL, data),
        seed=study.seed,
        memory=of_logits(study),
        gpus=study.training.teacher_gpus,
    )
    return artifact_asset(
        study,
        Shown(
            artifact,
            group="teacher",
            description="The teacher's next-token distributions over the distillation set, in that set's order.",
            kinds=frozenset({"safetensors"}),
            tags=TAGS,
        ),
        priority={PRIORITY: FIRST},
    )
