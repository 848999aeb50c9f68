"""Answers of one model to the study's questions, and how fast they came, in memory and on disk.

How they are generated belongs to `generation`; what they are worth to the modules that read them.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compression_assets.errors import StudyError

FILE_NAME = "answers.parquet"
SPEED = "speed.json"
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


@dataclass(frozen=True)
class Speed:
    """How fast a model answered: all questions in batches, and single prompts up to their first token.

    new_tokens: generated for all answers in `seconds` of wall time, the reading of prompts included.
    first_token_seconds: wall time from a prompt's tokens to the first new one, one prompt at a time; its median is
    `time_to_first_token`. Seconds are those of this device with `threads` threads, whatever else it was doing.
    """

    new_tokens: int
    seconds: float
    first_token_seconds: tuple[float, ...]
    batch_size: int
    device: str
    precision: str
    threads: int

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds

    @property
    def time_to_first_token(self) -> float:
        """Median, in seconds."""
        return statistics.median(self.first_token_seconds)


def write_speed(speed: Speed, directory: Path) -> None:
    """Write `speed.json` beside the answers."""
    (directory / SPEED).write_text(json.dumps(asdict(speed), indent=1, allow_nan=False))


def read_speed(directory: Path) -> Speed:
    """Read what `write_speed` wrote; StudyError if it is missing or damaged."""
    path = directory / SPEED
    try:
        content = json.loads(path.read_text())
        return Speed(**{**content, "first_token_seconds": tuple(content["first_token_seconds"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"the speed {path} cannot be read ({error}): build that model's answers again."
        ) from error
