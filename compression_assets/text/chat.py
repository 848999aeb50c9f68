"""Turning one conversation into tokens and saying which of them are message content and which end a message.

Content is what a user or an assistant said. Everything else is template: role headers, the tokens that end a turn,
a system prompt that the template adds, and system messages in the data, which are instructions of the data's authors.
Training also learns the tokens that end a message; headers and system prompts, which are constant, it never does.
Reading conversations belongs to `sources`, choosing them to `splits`.
"""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from compression_assets.errors import StudyError
from compression_assets.text.chat_template import ChatTemplate
from compression_assets.text.conversation import CONTENT_ROLES, Message
from compression_assets.text.spans import Span, inside


class Rendered(NamedTuple):
    """Tokens of a conversation: ids, for each whether it is content, and the places of those that end a message."""

    ids: list[int]
    content: list[bool]
    ends: list[int]


def render(template: ChatTemplate, messages: Sequence[Message], max_length: int) -> Rendered:
    """Tokens of a conversation in the model's chat format, cut after `max_length`.

    The ids are those of the tokenizer's own chat template. Contents are stripped of surrounding white space. A content
    that spells a special token of the tokenizer is rendered with a space after that token's first character
    ("< |im_end|>"), so that it stays text. Errors as `rendered_text`.
    """
    text, spans, ends = rendered_text(template, messages)
    tokenizer = template.tokenizer
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"][:max_length], encoded["offset_mapping"][:max_length]
    content = inside(text, offsets, spans)
    _refuse_special_content(ids, content, template.special, tokenizer.unk_token_id)
    ending = inside(text, offsets, ends)
    return Rendered(ids, content, [place for place, flag in enumerate(ending) if flag and not content[place]])


def rendered_text(template: ChatTemplate, messages: Sequence[Message]) -> tuple[str, list[Span], list[Span]]:
    """The text of a conversation, the spans of user and assistant contents in it, and of what ends these messages.

    Contents are filled into the frame that the template writes around marks, so nothing that a message says can be
    mistaken for template; the result has to equal the template's rendering of the messages themselves.
    StudyError if the template cannot render the conversation or changes with what the messages say.
    """
    messages = [
        Message(message.role, plain_content(message.content, template.special)) for message in messages
    ]
    frame = template.frame(tuple(message.role for message in messages))
    text, contents, ends = frame.fill([messages[index].content for index in frame.shown])
    if text != template.text(messages):
        raise StudyError(
            "the model's chat template writes different text depending on what a message says "
            f"(message starting {messages[0].content[:40]!r}), so content cannot be told from template: "
            "give the model another chat template."
        )
    said = [messages[index].role in CONTENT_ROLES for index in frame.shown]
    return text, _where(contents, said), _where(ends, said)


def _where(spans: Sequence[Span], flags: Sequence[bool]) -> list[Span]:
    return [span for span, flag in zip(spans, flags, strict=True) if flag]


def plain_content(content: str, special: Collection[str]) -> str:
    """Stripped content in which no special token is spelled any more."""
    content = content.strip()
    spelled = sorted((token for token in special if token and token in content), key=len, reverse=True)
    if not spelled:
        return content
    pattern = "|".join(map(re.escape, spelled))
    return re.sub(pattern, lambda match: f"{match[0][0]} {match[0][1:]}", content).strip()


def _refuse_special_content(
    ids: Sequence[int], content: Sequence[bool], special: dict[str, int], unknown: int | None
) -> None:
    forbidden = {index: text for text, index in special.items() if index != unknown}
    for index, is_content in zip(ids, content, strict=True):
        if is_content and index in forbidden:
            raise StudyError(
                f"a message was tokenised to the special token {forbidden[index]!r}, which could pass for template: "
                "remove that text from the data."
            )
