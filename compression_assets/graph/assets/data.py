"""The data sets: disjoint splits of the chat data, tokenised with the base model's tokenizer."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from compression_assets.graph.assets.artifact import Artifact, ArtifactConfig, Build, Workplace, result
from compression_assets.graph.assets.made_on_demand import SideInput
from compression_assets.graph.resources.gpu import Gpu
from compression_assets.graph.resources.storage import StudyStorage
from compression_assets.store.reports import StepReport
from compression_assets.store.sql_text import markdown_code, parquet_literal
from compression_assets.study.model import Study
from compression_assets.study.names import (
    BASE_MODEL,
    DATASETS,
    DATASETS_OP,
    OWNERS,
    QUESTION_SET,
    relative_directory,
)

if TYPE_CHECKING:
    from compression_assets.sources.prepare import Preparation

DESCRIPTIONS = {
    "calibration": "Conversations over which pruning measures activations.",
    "finetuning": "Conversations for fine-tuning after pruning.",
    "teacher": "Conversations on which the teacher is corrected, apart from what it teaches on.",
    "distillation": "Conversations over which the teacher's logits are computed and every student distils.",
    "evaluation": "Held-out conversations over which every model's perplexity is measured.",
}
CHECK = "splits_disjoint"


def split_artifact(study: Study, split: str) -> Artifact:
    return Artifact(
        asset=DATASETS[split],
        settings={"data": study.data.model_dump(mode="json"), "split": split},
        code="compression_assets.sources.prepare",
        inputs=(BASE_MODEL,),
        seed=study.seed,
        checks=(CHECK,),
        computes=False,
        sources=(study.data.chat, study.data.evaluation_chat),
    )


def question_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`question_set`, in a study that asks questions."""
    if study.data.questions is None:
        return []
    questions = question_input(study)

    @dg.asset(
        key=QUESTION_SET,
        group_name="data",
        description="A seeded sample of reading-comprehension questions in SQuAD's schema.",
        kinds={"parquet"},
        tags={"stage": "data"},
        owners=OWNERS,
        code_version=questions.artifact.code_version,
    )
    def question_set(
        context: dg.AssetExecutionContext, config: ArtifactConfig, storage: StudyStorage, gpu: Gpu
    ) -> dg.MaterializeResult:
        manifest, cached = questions.make(context, storage, gpu, config.rebuild)
        directory = storage.artifacts.root / relative_directory(QUESTION_SET)
        return result(manifest, cached, directory, rows=manifest.metadata["rows"])

    return [question_set]


def question_input(study: Study) -> SideInput:
    """How `question_set` is made; only of a study that asks questions."""
    asked = study.data.questions
    assert asked is not None
    artifact = Artifact(
        asset=QUESTION_SET,
        settings=asked.model_dump(mode="json"),
        code="compression_assets.sources.questions",
        seed=study.seed,
        computes=False,
        sources=(asked.source,),
    )

    def build(storage: StudyStorage, place: Workplace) -> StepReport:
        from compression_assets.sources.questions import read_questions
        from compression_assets.text.questions import select_questions, write_questions

        questions = select_questions(read_questions(asked.source, storage.downloads), asked.count, study.seed)
        write_questions(questions, place.output)
        return StepReport(metadata={"rows": len(questions), "summary": f"{len(questions):,} questions"})

    return SideInput(artifact, lambda storage: partial(build, storage))


def dataset_assets(study: Study) -> dg.AssetsDefinition:
    """All splits that the study has, as one asset definition: they are cut from the same shuffled source."""
    artifacts = {split: split_artifact(study, split) for split in study.data.splits.sizes()}
    specs = [
        dg.AssetSpec(
            artifact.asset,
            deps=[BASE_MODEL],
            group_name="data",
            description=DESCRIPTIONS[split],
            kinds={"parquet"},
            tags={"stage": "data"},
            owners=OWNERS,
            code_version=artifact.code_version,
        )
        for split, artifact in artifacts.items()
    ]

    @dg.multi_asset(
        name=DATASETS_OP,
        specs=specs,
        check_specs=[spec for artifact in artifacts.values() for spec in artifact.check_specs()],
        can_subset=True,
    )
    def datasets(
        context: dg.AssetExecutionContext, config: ArtifactConfig, storage: StudyStorage, gpu: Gpu
    ) -> Iterator[dg.MaterializeResult]:
        from compression_assets.sources.prepare import Preparation

        preparation = Preparation(study.data, study.seed, storage.downloads)
        for split, artifact in artifacts.items():
            if dg.AssetKey(artifact.asset) not in context.selected_asset_keys:
                continue

            made = split_input(study, split, preparation)
            manifest, cached = made.make(context, storage, gpu, config.rebuild)
            shown = {
                key: manifest.metadata[key] for key in ("rows", "tokens", "predicted_tokens", "content_share")
            }
            directory = storage.artifacts.root / relative_directory(artifact.asset)
            sql = f"SELECT * FROM {parquet_literal(directory / 'rows.parquet')} LIMIT 5"
            yield result(manifest, cached, directory, **shown, sql=dg.MetadataValue.md(markdown_code(sql)))

    return datasets


def split_input(study: Study, split: str, preparation: "Preparation | None" = None) -> SideInput:
    """How a split is made. preparation: that of other splits, which has read the source already."""

    def build(storage: StudyStorage) -> Build:
        from compression_assets.sources.prepare import Preparation

        source = preparation or Preparation(study.data, study.seed, storage.downloads)
        return lambda place: source.write(split, place.inputs[BASE_MODEL], place.output, place.report)

    return SideInput(split_artifact(study, split), build)
