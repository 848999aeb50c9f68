"""Where in a rendered conversation contents are, and what ends them: characters only, no tokenizer.

A template is asked to render marks in place of contents. What it writes around them is found from that, whatever the
template's tokens are called.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile

from compression_assets.errors import StudyError
from compression_assets.text.conversation import CONTENT_ROLES, Message

Span = tuple[int, int]
"""Characters [start, end) of a text."""


@dataclass(frozen=True)
class Frame:
    """What a template writes around the contents of messages.

    shown: indices of the messages whose contents it writes, in order; a system message may be left out.
    before: the text in front of each of these contents. after: what follows the last.
    ends: how the text after each content begins, as far as that ends the message; empty where nothing does.
    """

    shown: tuple[int, ...]
    before: tuple[str, ...]
    after: str
    ends: tuple[str, ...]

    def fill(self, contents: Sequence[str]) -> tuple[str, list[Span], list[Span]]:
        """The text with these contents (one for each shown message), their spans, and the spans of their ends."""
        text, spans, ends = "", [], []
        for before, content, end in zip(self.before, contents, self.ends, strict=True):
            text += before
            spans.append((len(text), len(text) + len(content)))
            text += content
            ends.append((len(text), len(text) + len(end)))
        return text + self.after, spans, ends


def frame_of(
    render: Callable[[Sequence[Message]], str],
    roles: tuple[str, ...],
    tokens: Collection[str],
    stopping: Collection[str],
    tails: dict[tuple[str, ...], str],
) -> Frame:
    """The frame of messages with these roles.

    What ends a message is what the template writes after it in both of two cases: when the conversation goes on, and
    when it stops there. The header of the next message is in the first alone. Of that text the part up to the first
    of `tokens` (texts of the tokenizer's added tokens) counts: a line break behind it is never generated. Without
    such a token it is the part up to the next white space, and white space alone ends nothing. Where the next header
    begins with a token at which the model stops (`stopping`), as in GLM-4, that token ends the message.
    tails: what the template writes after the last of messages with given roles; filled here, for the next call.
    StudyError if the template does not show every user and assistant message once and in order.
    """
    messages = [Message(role, f"\ue000{index}\ue001") for index, role in enumerate(roles)]
    whole = render(messages)
    shown, before, place = [], [], 0
    for index, message in enumerate(messages):
        start = whole.find(message.content, place)
        if start < 0 or whole.count(message.content) != 1:
            if message.role not in CONTENT_ROLES and start < 0:
                continue
            raise StudyError(
                f"the model's chat template does not show every message once and in order (message {index}, "
                f"{message.role}), so content cannot be told from template: give the model another chat template."
            )
        shown.append(index)
        before.append(whole[place:start])
        place = start + len(message.content)
    following = [*before[1:], whole[place:]]
    ends = [
        _end(following[position], _tail(render, messages[: index + 1], tails), tokens, stopping)
        for position, index in enumerate(shown)
    ]
    return Frame(tuple(shown), tuple(before), whole[place:], tuple(ends))


def inside(text: str, tokens: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token whether its characters lie inside one span, white space around the span aside.

    tokens: each one's characters. A token that begins with the template's space (SentencePiece's " Hello") or takes
    the line break behind a span with it belongs to that span; one of white space outside alone does not. The pieces of
    a character that takes several tokens all carry that character's offsets. Tokenizers that trim offsets report white
    space as an empty range at its end; it is widened to the end of the token before.
    """
    flags = []
    waiting = iter(spans)
    first, last = next(waiting, (0, 0))
    previous = 0
    for start, end in tokens:
        if start == end:
            start = min(previous, start)
        while start >= last and (following := next(waiting, None)) is not None:
            first, last = following
        overlaps = max(start, first) < min(end, last)
        flags.append(overlaps and not (text[start:first] + text[last:end]).strip())
        previous = max(previous, end)
    return flags


def _tail(
    render: Callable[[Sequence[Message]], str],
    messages: Sequence[Message],
    tails: dict[tuple[str, ...], str],
) -> str:
    """What the template writes after the last of these messages when nothing follows it."""
    roles = tuple(message.role for message in messages)
    if roles not in tails:
        try:
            tails[roles] = render(messages).partition(messages[-1].content)[2]
        except StudyError:
            # A conversation that may go on but not stop here has no end to learn here.
            tails[roles] = ""
    return tails[roles]


def _end(following: str, tail: str, tokens: Collection[str], stopping: Collection[str]) -> str:
    common = _common(following, tail)
    if found := _first(tokens, common):
        return common[: found.end()]
    header = _first(tokens, following)
    if header and header[0] in stopping and not following[: header.start()].strip():
        return following[: header.end()]
    spelled = re.match(r"\s*\S+", common)
    return spelled[0] if spelled else ""


def _common(one: str, other: str) -> str:
    """What two texts begin with."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in alike)


def _first(tokens: Collection[str], text: str) -> "re.Match[str] | None":
    """The first of some tokens in a text, the longest where several begin there."""
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True) if token)
    return re.search(pattern, text) if pattern else None
