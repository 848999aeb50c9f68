"""Where conversations come from: hub data sets, JSONL files, wheels. No tokens in here."""

import importlib.resources
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from compression_assets.errors import StudyError
from compression_assets.sources.wheels import WheelFile, fetch_member
from compression_assets.strict import Strict
from compression_assets.text.chat import ROLES, Conversation, Message

SHIPPED = re.compile(r"package:([A-Za-z0-9_-]+\.jsonl)")


class HubChat(Strict):
    """A data set of the Hugging Face hub with ultrachat_200k's schema (`messages`: role, content)."""

    kind: Literal["hub"]
    dataset: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")]
    revision: Annotated[str, StringConstraints(min_length=1)]
    split: Annotated[str, StringConstraints(min_length=1)]


class JsonlChat(Strict):
    """A local file with one conversation a line; "package:NAME.jsonl" is one that ships with this package."""

    kind: Literal["jsonl"]
    path: Annotated[str, StringConstraints(min_length=1)]

    def resolved(self) -> Path:
        """The file's path on disk."""
        if shipped := SHIPPED.fullmatch(self.path):
            return Path(str(importlib.resources.files("compression_assets") / "data" / shipped[1]))
        return Path(self.path).expanduser()


class WheelChat(WheelFile):
    """A file of conversations in a hash-pinned wheel."""

    kind: Literal["wheel"]
    format: Literal["chitchat", "jsonl"]


ChatSource = Annotated[HubChat | JsonlChat | WheelChat, Field(discriminator="kind")]


class Conversations:
    """Conversations of a source, in the source's order, each time it is iterated.

    `skipped` counts what the last pass left out: "empty" (no content at all) and "one_sided" (content
    of one role only).
    """

    def __init__(self, read: Callable[[], Iterable[Conversation]], limit: int | None) -> None:
        self._read = read
        self._limit = limit
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Conversation]:
        self.skipped.clear()
        return islice(self._usable(), self._limit)

    def _usable(self) -> Iterator[Conversation]:
        for conversation in self._read():
            roles = {message.role for message in conversation.messages} - {"system"}
            if len(roles) == 2:
                yield conversation
            else:
                self.skipped["one_sided" if roles else "empty"] += 1


def read_conversations(source: ChatSource, cache_dir: Path, limit: int | None = None) -> Conversations:
    """Conversations of a source, at most the first `limit` usable ones.

    In every conversation contents are stripped and not empty, and turns in a row of one role are joined
    with a line break, so that user and assistant alternate. StudyError names a missing file and the
    line of a malformed row.
    """
    if isinstance(source, HubChat):
        return Conversations(lambda: _read_hub(source, cache_dir, limit is not None), limit)
    if isinstance(source, JsonlChat):
        return Conversations(lambda: _read_jsonl(source.resolved()), limit)
    path = fetch_member(source, cache_dir)
    read = _read_jsonl if source.format == "jsonl" else _read_chitchat
    return Conversations(lambda: read(path), limit)


def check_chat_source(source: ChatSource) -> None:
    """StudyError if a local file is missing. Touches no network."""
    if isinstance(source, JsonlChat):
        _require_file(source.resolved())


def _read_jsonl(path: Path) -> Iterator[Conversation]:
    _require_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                row = _json(line.decode("utf-8-sig" if number == 1 else "utf-8")) if line.strip() else None
            except UnicodeDecodeError as error:
                raise StudyError(
                    f"{where}: not UTF-8 text ({error.reason}): save the file as UTF-8."
                ) from error
            except (ValueError, RecursionError) as error:
                raise StudyError(f"{where}: not valid JSON ({error}): correct or remove the line.") from error
            if row is not None:
                yield _conversation(row, where, str(number))


def _read_hub(source: HubChat, cache_dir: Path, streaming: bool) -> Iterator[Conversation]:
    """Rows through `datasets`; streamed when only some are wanted, so that the rest is not downloaded."""
    import datasets

    try:
        rows = datasets.load_dataset(
            source.dataset,
            split=source.split,
            revision=source.revision,
            streaming=streaming,
            cache_dir=None if streaming else str(cache_dir / "datasets"),
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise StudyError(
            f"the data set {source.dataset} ({source.split}, revision {source.revision}) cannot be loaded from the hub "
            f"({_first_line(error)}): check its name, split, revision and the connection, or name a local jsonl file."
        ) from error
    for number, row in enumerate(rows):
        yield _conversation(row, f"{source.dataset}, row {number}", str(number))


def _read_chitchat(path: Path) -> Iterator[Conversation]:
    """chitchat-dataset's `dataset.json`: id -> {"messages": [turn]}, a turn a list of {"text", "sender"}.

    The sender of the first message is the user.
    """
    try:
        rows = _json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is not valid JSON ({error}): delete it and run again.") from error
    for key, row in rows.items():
        try:
            said = [(message["sender"], message["text"]) for turn in row["messages"] for message in turn]
        except (KeyError, TypeError) as error:
            raise StudyError(
                f"{path}, conversation {key!r}: not in chitchat's format ({error!r})."
            ) from error
        turns = [
            {"role": "user" if sender == said[0][0] else "assistant", "content": text}
            for sender, text in said
        ]
        yield _conversation({"messages": turns}, f"{path}, conversation {key!r}", key)


def _conversation(row: Any, where: str, key: str) -> Conversation:
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise StudyError(f'{where}: expected an object with a list "messages" of {{"role", "content"}}.')
    merged: list[Message] = []
    for turn in row["messages"]:
        message = _message(turn, where)
        if not message.content:
            continue
        if merged and merged[-1].role == message.role:
            merged[-1] = Message(message.role, f"{merged[-1].content}\n{message.content}")
        else:
            merged.append(message)
    return Conversation(str(row.get("prompt_id") or key), tuple(merged))


def _message(turn: Any, where: str) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if role not in ROLES:
        raise StudyError(f"{where}: a message has the role {role!r}; allowed are {', '.join(ROLES)}.")
    if not isinstance(content, str):
        raise StudyError(f"{where}: a message's content is {content!r}, not a text.")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise StudyError(f"{where}: a message holds half a surrogate pair, which is no character.") from error
    return Message(role, content.strip())


def _json(text: str) -> Any:
    """The JSON value of a text; ValueError for NaN and infinities, which Python would take."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value")

    return json.loads(text, parse_constant=refuse)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise StudyError(f"the chat file {path} does not exist: correct the path in the study.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
