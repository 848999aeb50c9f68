"""Disjoint splits of a chat source, by construction, and the check that proves it.

Which conversation lands in which split depends on its content and the seed alone, not on its place
in the source. Rendering belongs to `chat`, reading to `sources`.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from pydantic import PositiveInt, model_validator

from compression_assets.errors import StudyError
from compression_assets.strict import Strict
from compression_assets.text.chat import render, rendered_text
from compression_assets.text.chat_template import ChatTemplate
from compression_assets.text.conversation import CONTENT_ROLES, Conversation
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.text.refusals import Refusals


class SplitSize(Strict):
    """Either at least so many predicted content tokens, or exactly so many conversations.

    What ends a message is not counted, so that a split holds the same conversations whatever the template.
    """

    tokens: PositiveInt | None = None
    conversations: PositiveInt | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "SplitSize":
        if (self.tokens is None) == (self.conversations is None):
            raise ValueError("give a split's size as either tokens or conversations")
        return self

    def reached(self, tokens: int, conversations: int) -> bool:
        """Whether a split with so many tokens and conversations is full."""
        return (
            tokens >= self.tokens if self.tokens is not None else conversations >= (self.conversations or 0)
        )

    def __str__(self) -> str:
        if self.tokens is not None:
            return f"{self.tokens:,} predicted content tokens"
        return f"{self.conversations:,} conversations"


class Splits(dict[str, TokenDataset]):
    """Split name -> dataset, with what was left out.

    counts: conversations read ("read"), left out as duplicates ("duplicates") or because of `exclude`
    ("excluded"), left out because nothing but template fits in max_length ("without_content") or because the chat
    template refuses them ("refused"), and used ("used"). A row's id is the hash of its conversation's normalised
    content. refusals: which conversations were refused, and why.
    """

    counts: Counter[str]
    refusals: Refusals


def make_splits(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    sizes: Mapping[str, SplitSize],
    max_length: int,
    seed: int,
    exclude: Collection[str] = (),
    max_refused: float = 0.0,
) -> Splits:
    """Fill the splits named in `sizes`, in that order, each conversation used at most once.

    Conversations are taken in the order of a seeded hash of their content and cut to `max_length`
    tokens; only as many are tokenised as are needed. Two conversations are duplicates if their contents
    are equal after NFKC, case folding and collapsing white space, or if their rows hold the same content
    tokens. `exclude` holds `content_hashes` of splits made from another source. Conversations that the template
    refuses are left out; all of them are tried, so that nothing depends on which are drawn. A conversation whose
    content turns into a special token is refused once it is drawn: only tokens show that. StudyError when the source
    runs out, and when more than `max_refused` (a share of the conversations) or all are refused.
    """
    counts: Counter[str] = Counter()
    refusals = Refusals(max_refused)
    ordered = _ordered(conversations, seed, exclude, counts)
    accepted = _accepted(ordered, template, refusals)
    counts["refused"] = len(refusals)
    rows = _rows(accepted, template, max_length, exclude, counts, refusals)
    splits = Splits()
    for name, size in sizes.items():
        splits[name] = _fill(name, size, rows, counts)
    refusals.require_few(len(ordered))
    splits.counts, splits.refusals = counts, refusals
    return splits


def content_hashes(splits: Iterable[TokenDataset]) -> set[str]:
    """What identifies the conversations in these datasets: text hashes and content-token hashes."""
    return {value for dataset in splits for row in dataset for value in (row.id, _token_hash(row))}


def overlap(splits: Mapping[str, TokenDataset]) -> list[str]:
    """Hashes (row ids or content-token hashes) that occur more than once over all splits, sorted."""
    rows = [row for dataset in splits.values() for row in dataset]
    seen = Counter(row.id for row in rows) + Counter(_token_hash(row) for row in rows)
    return sorted(value for value, times in seen.items() if times > 1)


def conversation_hash(conversation: Conversation) -> str:
    """SHA-256 (hex) of the normalised user and assistant contents, in order."""
    contents = [
        _normalised(message.content) for message in conversation.messages if message.role in CONTENT_ROLES
    ]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _token_hash(row: TokenRow) -> str:
    tokens = [token for token, is_content in zip(row.input_ids, row.content, strict=True) if is_content]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _ordered(
    conversations: Iterable[Conversation], seed: int, exclude: Collection[str], counts: Counter[str]
) -> list[tuple[str, Conversation]]:
    unique: dict[str, Conversation] = {}
    for conversation in conversations:
        counts["read"] += 1
        key = conversation_hash(conversation)
        if key in exclude:
            counts["excluded"] += 1
        elif key in unique:
            counts["duplicates"] += 1
        else:
            unique[key] = conversation
    return sorted(unique.items(), key=lambda item: hashlib.sha256(f"{seed}:{item[0]}".encode()).digest())


def _accepted(
    ordered: Iterable[tuple[str, Conversation]], template: ChatTemplate, refusals: Refusals
) -> list[tuple[str, Conversation]]:
    """Those that the template renders. StudyError as `Refusals.require_few`."""
    accepted = []
    for key, conversation in ordered:
        with refusals.noted(conversation):
            rendered_text(template, conversation.messages)
            accepted.append((key, conversation))
    refusals.require_few(len(accepted) + len(refusals))
    return accepted


def _rows(
    ordered: Sequence[tuple[str, Conversation]],
    template: ChatTemplate,
    max_length: int,
    exclude: Collection[str],
    counts: Counter[str],
    refusals: Refusals,
) -> Iterator[TokenRow]:
    seen: set[str] = set()
    for key, conversation in ordered:
        row = None
        with refusals.noted(conversation):
            row = TokenRow(key, *render(template, conversation.messages, max_length))
        if row is None:
            counts["refused"] += 1
            continue
        tokens = _token_hash(row)
        if row.n_predicted == 0:
            counts["without_content"] += 1
        elif tokens in exclude:
            counts["excluded"] += 1
        elif tokens in seen:
            counts["duplicates"] += 1
        else:
            seen.add(tokens)
            counts["used"] += 1
            yield row


def _fill(name: str, size: SplitSize, rows: Iterator[TokenRow], counts: Counter[str]) -> TokenDataset:
    taken: list[TokenRow] = []
    tokens = 0
    while not size.reached(tokens, len(taken)):
        row = next(rows, None)
        if row is None:
            raise StudyError(
                f"the chat source ran out while filling the split {name!r}: {size} asked, {tokens:,} tokens in "
                f"{len(taken):,} conversations left for it (of {counts['read']:,} read, {counts['duplicates']:,} "
                f"duplicates, {counts['without_content']:,} without content, {counts['refused']:,} refused): ask for "
                "less or name a larger source."
            )
        taken.append(row)
        tokens += row.n_predicted
    return TokenDataset(taken)
