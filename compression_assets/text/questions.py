"""Reading-comprehension questions in memory and on disk, and drawing some of them.

Where they come from belongs to `sources.questions`; prompts, answers and scores to `evaluation`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compression_assets.errors import StudyError

FILE_NAME = "questions.parquet"


@dataclass(frozen=True)
class Question:
    """A question about a passage (`context`), with every answer that counts as right."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[str, ...]


def select_questions(questions: Iterable[Question], count: int, seed: int) -> list[Question]:
    """`count` questions, drawn and ordered by a seeded hash of passage and question.

    Neither their order in the source nor their ids matter, and a larger count adds to a smaller one. The
    same question about the same passage is drawn once. StudyError if there are too few.
    """
    found: dict[str, Question] = {}
    # Sorted, so that which of two copies is kept does not depend on the source's order either.
    for question in sorted(questions, key=lambda question: (question.answers, question.title, question.id)):
        found.setdefault(_hash(question), question)
    if len(found) < count:
        raise StudyError(
            f"{count:,} questions asked, but the source has {len(found):,} different ones: "
            "ask for fewer (data.questions.count) or name a larger source."
        )
    drawn = sorted(found, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    return [found[key] for key in drawn[:count]]


def write_questions(questions: Sequence[Question], directory: Path) -> Path:
    """Write `questions.parquet` (id, title, context, question, answers) and return its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "id": pa.array([question.id for question in questions], pa.string()),
            "title": pa.array([question.title for question in questions], pa.string()),
            "context": pa.array([question.context for question in questions], pa.string()),
            "question": pa.array([question.question for question in questions], pa.string()),
            "answers": pa.array([list(question.answers) for question in questions], pa.list_(pa.string())),
        }
    )
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, directory / FILE_NAME)
    return directory / FILE_NAME


def read_question_set(directory: Path) -> list[Question]:
    """Read what `write_questions` wrote, in its order; StudyError if the file is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = directory / FILE_NAME
    if not path.is_file():
        raise StudyError(f"there are no questions at {path}: build the study's questions first.")
    names = ["id", "title", "context", "question", "answers"]
    try:
        rows = pq.read_table(path, columns=names, partitioning=None).to_pylist()
        return [Question(**{**row, "answers": tuple(row["answers"])}) for row in rows]
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise StudyError(
            f"the questions {path} are damaged ({error}): delete them and build the study's questions again."
        ) from error


def _hash(question: Question) -> str:
    return hashlib.sha256(json.dumps([question.context, question.question]).encode()).hexdigest()
