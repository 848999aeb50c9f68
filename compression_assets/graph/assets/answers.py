"""One answers asset a finished model: what it answers to the study's questions, and how fast.

Everything that judges answers reads these; nothing generates them again.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg

from compression_assets.evaluation import four_bit
from compression_assets.evaluation.answers import Answer, read_answers
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.settings import AnswerSettings
from compression_assets.graph.assets.artifact import Artifact, Workplace
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.data import question_input
from compression_assets.graph.assets.measured_asset import Measurement, measured_asset
from compression_assets.graph.assets.memory import of_scoring
from compression_assets.graph.resources.storage import StudyStorage
from compression_assets.store.reports import StepReport
from compression_assets.study.leaderboard_models import Subject, subjects
from compression_assets.study.model import Study
from compression_assets.study.names import QUESTION_SET
from compression_assets.study.orderings import quantized_by
from compression_assets.tables import markdown

PART = "answers"
TABLE = "answers"
SHOWN = 5
"""Answers in the asset's metadata."""


def answers_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`answers_<subject>` for every model that is measured, in a study that asks for answers."""
    settings = study.evaluation.answers
    if settings is None:
        return []
    return [_answers_asset(study, subject, settings) for subject in subjects(study)]


def _answers_asset(study: Study, subject: Subject, settings: AnswerSettings) -> dg.AssetsDefinition:
    model = subject.model
    quantized = quantized_by(subject.path) is not None
    artifact = Artifact(
        asset=subject.asset(PART),
        settings={PART: settings.model_dump(mode="json")},
        code=("compression_assets.evaluation.answering", *format_code(study, subject.path)),
        inputs=(model, QUESTION_SET),
        # Greedy answers are the same whatever the seed.
        seed=study.seed if settings.temperature > 0 else None,
        parent=model,
        path=subject.path,
        warnings=(four_bit.CHECK,) if quantized else (),
        needs=of_scoring(model, study),
    )

    def measure(place: Workplace, storage: StudyStorage) -> tuple[list[MetricRow], list[Sample], StepReport]:
        from compression_assets.evaluation.answering import answer_questions
        from compression_assets.evaluation.answers import write_answers, write_speed
        from compression_assets.text.questions import read_question_set

        answered = answer_questions(
            place.inputs[model],
            read_question_set(place.inputs[QUESTION_SET]),
            settings,
            study.seed,
            place.device,
            place.report,
        )
        write_answers(answered.answers, place.output)
        write_speed(answered.speed, place.output)
        speed = answered.speed.tokens_per_second
        report = StepReport(
            checks=(answered.four_bit.check(),) if quantized and answered.four_bit else (),
            metadata={
                "summary": f"{len(answered.answers)} answers, {speed:.0f} tokens/s",
                "precision": answered.speed.precision,
                "threads": answered.speed.threads,
            },
        )
        return answered.rows(), answered.samples(), report

    def to_table(storage: StudyStorage, directory: Path) -> dict[str, Any]:
        found = read_answers(directory)
        storage.database.write_table(TABLE, table_rows(subject.key, found), ["model"])
        sql = f"`SELECT question, answer FROM {TABLE} WHERE model = '{subject.key}'`"
        return {"examples": _examples(found), "sql": dg.MetadataValue.md(sql)}

    about = f"What {model} answers to the questions (table {TABLE}) and how fast"
    measurement = Measurement(
        PART,
        PART,
        about,
        measure,
        kinds=frozenset({"parquet", "duckdb"}),
        side_inputs=(question_input(study),),
        more=to_table,
    )
    return measured_asset(study, subject, artifact, measurement)


def table_rows(model: str, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Rows of the table `answers`, in the order of the questions."""
    return [
        {"model": model, "position": position, **asdict(answer), "expected": list(answer.expected)}
        for position, answer in enumerate(answers)
    ]


def _examples(answers: Sequence[Answer]) -> dg.MarkdownMetadataValue:
    rows = [
        [_cell(text) for text in (one.question, " / ".join(one.expected), one.answer)]
        for one in answers[:SHOWN]
    ]
    return dg.MetadataValue.md(markdown(["question", "expected", "answer"], rows))


def _cell(text: str) -> str:
    """A model's words in one cell of a Markdown table, whatever they are."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
