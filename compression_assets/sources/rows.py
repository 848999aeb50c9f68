"""Rows of hub data sets and JSONL files, whatever they hold: their settings, and reading them strictly.

What a row must look like belongs to `chat` and `questions`.
"""

import importlib.resources
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import StringConstraints

from compression_assets.errors import StudyError
from compression_assets.sources.hub_retries import persistently
from compression_assets.sources.paths import local_path
from compression_assets.strict import Strict
from compression_assets.tables import shortened

SHIPPED = re.compile(r"package:([A-Za-z0-9_-]+\.jsonl)")


class HubRows(Strict):
    """A split of a data set of the Hugging Face hub at a fixed revision (a commit is best: a branch moves)."""

    kind: Literal["hub"]
    dataset: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")]
    revision: Annotated[str, StringConstraints(min_length=1)]
    split: Annotated[str, StringConstraints(min_length=1)]


class JsonlRows(Strict):
    """A local file with one JSON object a line; "package:NAME.jsonl" is one that ships with this package."""

    kind: Literal["jsonl"]
    path: Annotated[str, StringConstraints(min_length=1)]

    def resolved(self) -> Path:
        """The file's path on disk."""
        if shipped := SHIPPED.fullmatch(self.path):
            return Path(str(importlib.resources.files("compression_assets") / "data" / shipped[1]))
        return local_path(self.path)


class Row(NamedTuple):
    """A row's value, its number (lines from 1, rows of the hub from 0), and where it is, for an error's sentence."""

    value: Any
    number: int
    where: str


def read_jsonl(path: Path, content: str) -> Iterator[Row]:
    """The rows of a JSONL file; blank lines are passed over.

    `content` says what the file holds, such as "chat". StudyError for a missing file, and, naming the
    line, for text that is not UTF-8 or not JSON (NaN and infinities are not).
    """
    require_file(path, content)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                value = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise StudyError(
                    f"{where}: not UTF-8 text ({error.reason}): save the file as UTF-8."
                ) from error
            except (ValueError, RecursionError) as error:
                raise StudyError(f"{where}: not valid JSON ({error}): correct or remove the line.") from error
            yield Row(value, number, where)


def read_hub(source: HubRows, cache_dir: Path, streaming: bool = False) -> Iterator[Row]:
    """The rows of a hub data set, through `datasets`; StudyError if it cannot be loaded.

    streaming: downloads what is read and keeps nothing, for when only some rows are wanted.
    """
    import datasets

    def load() -> Any:
        return datasets.load_dataset(
            source.dataset,
            split=source.split,
            revision=source.revision,
            streaming=streaming,
            cache_dir=None if streaming else str(cache_dir / "datasets"),
        )

    try:
        rows = persistently(load)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise StudyError(
            f"the data set {source.dataset} ({source.split}, revision {source.revision}) cannot be loaded from the hub "
            f"({_first_line(error)}): check its name, split, revision and the connection, or name a local jsonl file."
        ) from error
    for number, value in enumerate(rows):
        yield Row(value, number, f"{source.dataset}, row {number}")


def parse_json(text: str) -> Any:
    """The JSON value of a text; ValueError for NaN and infinities, which Python would take."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value")

    return json.loads(text, parse_constant=refuse)


def stripped_text(value: Any, name: str, where: str) -> str:
    """`value` without white space around it; StudyError if it is no text, or none that UTF-8 can hold.

    name: what the value is, such as "a message's content".
    """
    if not isinstance(value, str):
        raise StudyError(f"{where}: {name} is {shortened(repr(value))}, not a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise StudyError(f"{where}: {name} holds half a surrogate pair, which is no character.") from error
    return value.strip()


def require_file(path: Path, content: str) -> None:
    """StudyError if there is no such file; `content` says what it should hold, such as "chat"."""
    if not path.is_file():
        raise StudyError(f"the {content} file {path} does not exist: correct the path in the study.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
