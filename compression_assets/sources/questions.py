"""Where reading-comprehension questions come from: hub data sets and JSONL files in SQuAD's schema.

What is done with questions once they are read belongs to `text.questions`.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, StringConstraints

from compression_assets.errors import StudyError
from compression_assets.sources.rows import (
    HubRows,
    JsonlRows,
    Row,
    read_hub,
    read_jsonl,
    require_file,
    stripped_text,
)
from compression_assets.strict import Strict
from compression_assets.tables import shortened
from compression_assets.text.questions import Question


class HubQuestions(HubRows):
    """A data set of the Hugging Face hub with SQuAD's schema."""


class JsonlQuestions(JsonlRows):
    """A local file with one question a line; "package:NAME.jsonl" is one that ships with this package.

    sha256: of the file. With it a study is bound to the questions it was written for, and another file is refused.
    """

    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None


QuestionSource = Annotated[HubQuestions | JsonlQuestions, Field(discriminator="kind")]


class QuestionSettings(Strict):
    """The questions that every model answers: where they come from, and how many of them are drawn."""

    source: QuestionSource
    count: PositiveInt


def read_questions(source: QuestionSource, cache_dir: Path) -> list[Question]:
    """All questions of a source, in its order; the hub's are downloaded into `cache_dir`.

    A row is {"id", "title", "context", "question", "answers": {"text": [...], "answer_start": [...]}}, as
    in the hub's `squad`. Texts are stripped; only a title may be empty. `answer_start` is not used and
    may be left out. StudyError names the file and the line (the data set and the row) of anything
    else, of a question without an answer, and of an id that occurs twice.
    """
    if isinstance(source, HubQuestions):
        return _questions(read_hub(source, cache_dir))
    check_question_source(source)
    path = source.resolved()
    questions = _questions(read_jsonl(path, "question"))
    if not questions:
        raise StudyError(f"the question file {path} is empty: put one question a line into it.")
    return questions


def check_question_source(source: QuestionSource) -> None:
    """StudyError if a local file is missing, or not the one that its sha256 names. Touches no network."""
    if not isinstance(source, JsonlQuestions):
        return
    path = source.resolved()
    require_file(path, "question")
    if (
        source.sha256 is not None
        and (found := hashlib.sha256(path.read_bytes()).hexdigest()) != source.sha256
    ):
        raise StudyError(
            f"the question file {path} is not the one that the study is frozen to (its sha256 is {found}): "
            "restore it, or write the new sha256 into the study, whose results are then those of other questions."
        )


def _questions(rows: Iterable[Row]) -> list[Question]:
    questions = []
    first: dict[str, Row] = {}
    for row in rows:
        question = _question(row.value, row.where)
        if question.id in first:
            raise StudyError(
                f"{row.where}: the id {shortened(repr(question.id))} is also that of {first[question.id].where}: "
                "give every question an id of its own."
            )
        first[question.id] = row
        questions.append(question)
    return questions


def _question(value: Any, where: str) -> Question:
    if not isinstance(value, dict):
        raise StudyError(f'{where}: expected an object with "id", "title", "context", "question", "answers".')
    return Question(
        id=_filled(value.get("id"), '"id"', where),
        title=stripped_text(value.get("title"), '"title"', where),
        context=_filled(value.get("context"), '"context"', where),
        question=_filled(value.get("question"), '"question"', where),
        answers=_answers(value.get("answers"), where),
    )


def _answers(value: Any, where: str) -> tuple[str, ...]:
    texts = value.get("text") if isinstance(value, dict) else None
    if not isinstance(texts, list):
        raise StudyError(f'{where}: "answers" must be an object with a list "text" of answers.')
    if not texts:
        raise StudyError(
            f"{where}: the question has no answer: leave such questions out (those of SQuAD 2.0 too)."
        )
    starts = value.get("answer_start")
    if starts is not None and not _integers(starts, len(texts)):
        raise StudyError(f'{where}: "answer_start" must be a list of as many integers as there are answers.')
    return tuple(_filled(text, "an answer", where) for text in texts)


def _integers(value: Any, count: int) -> bool:
    # type() and not isinstance(): true is an int to Python.
    return isinstance(value, list) and len(value) == count and all(type(item) is int for item in value)


def _filled(value: Any, name: str, where: str) -> str:
    text = stripped_text(value, name, where)
    if not text:
        raise StudyError(f"{where}: {name} is empty.")
    return text
