"""Answers of one model to the study's questions, in memory and on disk.

How they are generated belongs to `generation`; what they are worth to the modules that read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compression_assets.errors import StudyError

FILE_NAME = "answers.parquet"
COLUMNS = ("id", "question", "context", "expected", "prompt", "answer", "n_tokens", "finished")


@dataclass(frozen=True)
class Answer:
    """What a model answered to one question.

    expected: every answer that counts as right. prompt: the text that the model continued, template
    included. answer: the new tokens alone, without special tokens and surrounding white space; may be empty.
    n_tokens: new tokens generated, the one that ends the answer included. finished: the model ended the
    answer itself; otherwise the limit of new tokens cut it off.
    """

    id: str
    question: str
    context: str
    expected: tuple[str, ...]
    prompt: str
    answer: str
    n_tokens: int
    finished: bool


def write_answers(answers: Sequence[Answer], directory: Path) -> Path:
    """Write `answers.parquet` (a column for each field of `Answer`) and return its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"expected": pa.list_(pa.string()), "n_tokens": pa.int64(), "finished": pa.bool_()}
    table = pa.table(
        {
            name: pa.array([getattr(answer, name) for answer in answers], types.get(name, pa.string()))
            for name in COLUMNS
        }
    )
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, directory / FILE_NAME)
    return directory / FILE_NAME


def read_answers(directory: Path) -> list[Answer]:
    """Read what `write_answers` wrote, in its order; StudyError if the file is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = directory / FILE_NAME
    if not path.is_file():
        raise StudyError(f"there are no answers at {path}: build that model's answers first.")
    try:
        rows = pq.read_table(path, columns=list(COLUMNS), partitioning=None).to_pylist()
        return [Answer(**{**row, "expected": tuple(row["expected"])}) for row in rows]
    except (pa.ArrowException, KeyError, TypeError, ValueError, OSError) as error:
        raise StudyError(
            f"the answers {path} are damaged ({error}): delete them and build that model's answers again."
        ) from error
