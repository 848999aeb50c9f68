"""Turning one conversation into tokens and saying which of them are message content.

Content is what a user or an assistant said. Everything else is template: role headers, end-of-turn
tokens, a system prompt that the template adds, and system messages in the data, which are
instructions of the data's authors. Reading conversations belongs to `sources`, choosing them to `splits`.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTENT_ROLES = ("user", "assistant")
ROLES = ("system", *CONTENT_ROLES)

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] + (eos_token or '') + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
"""Used where a tokenizer has no chat template: a line with the role, the content, the end-of-text token."""


@dataclass(frozen=True)
class Message:
    """One turn; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns of one conversation in order; `id` names it in its source."""

    id: str
    messages: tuple[Message, ...]


def render(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], max_length: int
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation in the model's chat format, and for each whether it is content.

    The ids are those of the tokenizer's own chat template, cut after `max_length` tokens. Contents are
    stripped of surrounding white space. A content that spells a special token of the tokenizer is
    rendered with a space after that token's first character ("< |im_end|>"), so that it stays text.
    StudyError if the template cannot render the conversation or changes with what the messages say.
    """
    special = special_tokens(tokenizer)
    messages = [Message(message.role, plain_content(message.content, special)) for message in messages]
    text, spans = _text_and_spans(tokenizer, messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"][:max_length]
    content = _inside(encoded["offset_mapping"][:max_length], spans)
    _refuse_special_content(ids, content, special, tokenizer.unk_token_id)
    return ids, content


def template_text(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], reply: bool = False
) -> str:
    """The chat template's text for these messages, ending with an open assistant turn if `reply`."""
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            chat_template=tokenizer.chat_template or PLAIN_TEMPLATE,
            tokenize=False,
            add_generation_prompt=reply,
        )
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise StudyError(
            f"the model's chat template refuses a conversation with the roles {roles} ({error}): "
            "leave such rows out of the data or give the model another chat template."
        ) from error
    return str(text)


def special_tokens(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """Text -> id of the tokens that the tokenizer never builds from ordinary text."""
    return {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def plain_content(content: str, special: Collection[str]) -> str:
    """Stripped content in which no special token is spelled any more."""
    content = content.strip()
    spelled = sorted((token for token in special if token and token in content), key=len, reverse=True)
    if not spelled:
        return content
    pattern = "|".join(map(re.escape, spelled))
    return re.sub(pattern, lambda match: f"{match[0][0]} {match[0][1:]}", content).strip()


def _text_and_spans(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message]
) -> tuple[str, list[tuple[int, int]]]:
    """Rendered text and the character spans [start, end) of user and assistant contents in it.

    The template is rendered around a sentinel for each content, so nothing that a message says can be
    mistaken for template; the result has to equal the template's rendering of the messages themselves.
    """
    sentinels = [f"\ue000{index}\ue001" for index in range(len(messages))]
    frame = template_text(
        tokenizer, [Message(m.role, mark) for m, mark in zip(messages, sentinels, strict=True)]
    )
    text, spans, place = "", [], 0
    for message, sentinel in zip(messages, sentinels, strict=True):
        start = frame.find(sentinel, place)
        if start < 0 or frame.count(sentinel) != 1:
            if message.role not in CONTENT_ROLES and start < 0:
                continue
            raise StudyError(
                f"the model's chat template does not show every message once and in order (message {sentinel[1:-1]}, "
                f"{message.role}), so content cannot be told from template: give the model another chat template."
            )
        text += frame[place:start]
        if message.role in CONTENT_ROLES:
            spans.append((len(text), len(text) + len(message.content)))
        text += message.content
        place = start + len(sentinel)
    text += frame[place:]
    if text != template_text(tokenizer, messages):
        raise StudyError(
            "the model's chat template writes different text depending on what a message says "
            f"(message starting {messages[0].content[:40]!r}), so content cannot be told from template: "
            "give the model another chat template."
        )
    return text, spans


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token whether its characters lie wholly inside one span.

    The pieces of a character that takes several tokens all carry that character's offsets. Tokenizers
    that trim offsets report white space as an empty range at its end; it is widened to the end of the
    token before. Any other empty token counts as outside.
    """
    flags = []
    waiting = iter(spans)
    first, last = next(waiting, (0, 0))
    previous = 0
    for start, end in offsets:
        if start == end:
            start = min(previous, start)
        while end > last and (following := next(waiting, None)) is not None:
            first, last = following
        flags.append(first <= start < end <= last)
        previous = max(previous, end)
    return flags


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
