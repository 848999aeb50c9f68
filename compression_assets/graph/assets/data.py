"""The data sets: disjoint splits of the chat data, tokenised with the base model's tokenizer."""

from typing import Any

import dagster as dg

from compression_assets.graph.assets.artifact import Artifact, BuildContext
from compression_assets.graph.assets.artifact_asset import Shown, artifact_asset
from compression_assets.graph.assets.priority import FIRST, PRIORITY
from compression_assets.graph.resources import StudyStorage
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.reports import StepReport
from compression_assets.store.sql_text import markdown_code, parquet_literal
from compression_assets.study.model import Study
from compression_assets.study.names import (
    BASE_MODEL,
    DATASETS,
    DATASETS_OP,
    QUESTION_SET,
    relative_directory,
)

DESCRIPTIONS = {
    "calibration": "Conversations over which pruning measures activations.",
    "finetuning": "Conversations for fine-tuning after pruning.",
    "teacher": "Conversations on which the teacher is corrected, apart from what it teaches on.",
    "distillation": "Conversations over which the teacher's logits are computed and every student distils.",
    "evaluation": "Held-out conversations over which every model's perplexity is measured.",
}
CHECK = "splits_disjoint"
SHOWN = (
    *("rows", "tokens", "predicted_tokens", "trained_tokens", "message_ends", "content_share"),
    *("template", "refused", "refusals"),
)
"""Of a split's manifest, for Dagster."""


def dataset_assets(study: Study) -> dg.AssetsDefinition:
    """All splits that the study has, as one step: they are cut from the same shuffled source."""
    shown = [
        Shown(
            split_artifact(study, split),
            group="data",
            description=DESCRIPTIONS[split],
            kinds=frozenset({"parquet"}),
            tags={"stage": "data"},
            metadata=_split_metadata,
        )
        for split in study.data.splits.sizes()
    ]
    return artifact_asset(study, *shown, name=DATASETS_OP, pool=None, priority={PRIORITY: FIRST})


def split_artifact(study: Study, split: str) -> Artifact:
    """How a split is made; splits that one step makes read the source once."""

    def build(place: BuildContext) -> StepReport:
        from compression_assets.sources.prepare import Preparation

        if "source" not in place.shared:
            place.shared["source"] = Preparation(study.data, study.seed, place.storage.downloads)
        source: Preparation = place.shared["source"]
        return source.write(split, place.inputs[BASE_MODEL], place.output, place.report)

    return Artifact(
        asset=DATASETS[split],
        build=build,
        settings={"data": study.data.model_dump(mode="json"), "split": split},
        code=("compression_assets.sources.prepare",),
        inputs=(BASE_MODEL,),
        seed=study.seed,
        checks=(CHECK,),
        uses_device=False,
        sources=(study.data.chat, study.data.evaluation_chat),
    )


def _split_metadata(manifest: Manifest, storage: StudyStorage) -> dict[str, Any]:
    store = storage.artifacts
    rows = store.location(store.root / relative_directory(manifest.asset), "rows.parquet")
    sql = f"SELECT * FROM {parquet_literal(rows)} LIMIT 5"
    shown = {key: manifest.metadata[key] for key in SHOWN}
    return {**shown, "sql": dg.MetadataValue.md(markdown_code(sql))}


def question_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`question_set`, in a study that asks questions."""
    if study.data.questions is None:
        return []
    shown = Shown(
        question_artifact(study),
        group="data",
        description="A seeded sample of reading-comprehension questions in SQuAD's schema.",
        kinds=frozenset({"parquet"}),
        tags={"stage": "data"},
        metadata=lambda manifest, storage: {"rows": manifest.metadata["rows"]},
    )
    return [artifact_asset(study, shown, pool=None)]


def question_artifact(study: Study) -> Artifact:
    """How `question_set` is made; only of a study that asks questions."""
    asked = study.data.questions
    assert asked is not None

    def build(place: BuildContext) -> StepReport:
        from compression_assets.sources.questions import read_questions
        from compression_assets.text.questions import select_questions, write_questions

        known = read_questions(asked.source, place.storage.downloads)
        questions = select_questions(known, asked.count, study.seed)
        write_questions(questions, place.output)
        return StepReport(metadata={"rows": len(questions), "summary": f"{len(questions):,} questions"})

    return Artifact(
        asset=QUESTION_SET,
        build=build,
        settings=asked.model_dump(mode="json"),
        code=("compression_assets.sources.questions",),
        seed=study.seed,
        uses_device=False,
        sources=(asked.source,),
    )
