"""One answers asset a finished model: what it answers to the study's questions, and how fast.

Everything that judges answers reads these; nothing generates them again.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from compression_assets.evaluation import four_bit
from compression_assets.evaluation.answers import Answer, read_answers
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.settings import AnswerSettings
from compression_assets.graph.assets.artifact import BuildContext
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.data import question_artifact
from compression_assets.graph.assets.measured_asset import measured_asset, measurement
from compression_assets.graph.assets.memory import of_scoring
from compression_assets.graph.resources import StudyStorage
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.reports import StepReport
from compression_assets.study.leaderboard_models import LeaderboardModel, leaderboard_models
from compression_assets.study.model import Study
from compression_assets.study.names import QUESTION_SET
from compression_assets.study.orderings import quantized_by
from compression_assets.tables import markdown

PART = "answers"
TABLE = "answers"
SHOWN = 5
"""Answers in the asset's metadata."""


def answers_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`answers_<model>` for every model that is measured, in a study that asks for answers."""
    settings = study.evaluation.answers
    if settings is None:
        return []
    return [_answers_asset(study, model, settings) for model in leaderboard_models(study)]


def _answers_asset(study: Study, model: LeaderboardModel, settings: AnswerSettings) -> dg.AssetsDefinition:
    asset = model.model
    quantized = quantized_by(model.path) is not None

    def measure(place: BuildContext) -> tuple[list[MetricRow], list[Sample], StepReport]:
        from compression_assets.evaluation.answering import answer_questions
        from compression_assets.evaluation.answers import write_answers
        from compression_assets.evaluation.speed import write_speed
        from compression_assets.text.questions import read_question_set

        answered = answer_questions(
            place.inputs[asset],
            read_question_set(place.inputs[QUESTION_SET]),
            settings,
            study.seed,
            place.device,
            place.report,
            study.data,
        )
        write_answers(answered.answers, place.output)
        write_speed(answered.speed, place.output)
        speed = answered.speed.tokens_per_second
        report = StepReport(
            checks=(answered.four_bit.check(),) if quantized and answered.four_bit else (),
            metadata={
                "summary": f"{len(answered.answers)} answers, {speed:.0f} tokens/s",
                "timed": answered.speed.conditions,
            },
        )
        return answered.rows(), answered.samples(), report

    artifact = measurement(
        model,
        PART,
        measure,
        settings={PART: settings.model_dump(mode="json"), **study.data.template_settings()},
        code=("compression_assets.evaluation.answering", *format_code(study, model.path)),
        inputs=(asset, QUESTION_SET),
        # Greedy answers are the same whatever the seed.
        seed=study.seed if settings.temperature > 0 else None,
        warnings=(four_bit.CHECK,) if quantized else (),
        memory=of_scoring(asset, study),
    )

    def metadata(manifest: Manifest, storage: StudyStorage) -> dict[str, Any]:
        found = read_answers(storage.local(manifest.asset))
        sql = f"`SELECT question, answer FROM {TABLE} WHERE model = '{model.key}'`"
        return {"examples": _examples(found), "sql": dg.MetadataValue.md(sql)}

    return measured_asset(
        study,
        model,
        artifact,
        group=PART,
        about=f"What {asset} answers to the questions (table {TABLE}) and how fast",
        kinds=frozenset({"parquet", "duckdb"}),
        on_demand=(question_artifact(study),),
        metadata=metadata,
    )


def _examples(answers: Sequence[Answer]) -> dg.MarkdownMetadataValue:
    rows = [
        [_cell(text) for text in (one.question, " / ".join(one.expected), one.answer)]
        for one in answers[:SHOWN]
    ]
    return dg.MetadataValue.md(markdown(["question", "expected", "answer"], rows))


def _cell(text: str) -> str:
    """A model's words in one cell of a Markdown table, whatever they are."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
