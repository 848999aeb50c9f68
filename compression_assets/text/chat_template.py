"""A model's chat template: which one is used, with which settings, and the text that it writes.

Whatever a template asks for besides messages and settings is fixed here, so that the same messages give the same text
on any day and any machine. Which parts of that text count belongs to `spans`, tokens to `chat`.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from compression_assets.errors import StudyError
from compression_assets.strict import Strict
from compression_assets.tables import shortened
from compression_assets.text.conversation import Message
from compression_assets.text.spans import Frame, frame_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT = "default"
"""The template that transformers uses where a tokenizer has several."""

TODAY = datetime(2024, 7, 26)
"""The date and time that every template is given; Llama 3.1's own template falls back to this date."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] + (eos_token or '') + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
"""Used where a tokenizer has no chat template: a line with the role, the content, the end-of-text token."""

_BY_CHANCE = re.compile(r"\|\s*random\b|\blipsum\b")
_OWN_ARGUMENTS = {"messages", "add_generation_prompt", "chat_template", "tokenize", "tools", "strftime_now"}

Setting = bool | int | float | str


class TemplateSettings(Strict):
    """chat_template: the name of one of a tokenizer's templates; "default", or the only one, when left out.

    chat_template_kwargs: variables that the template reads, such as {enable_thinking: false} of Qwen3's.
    """

    chat_template: str | None = None
    chat_template_kwargs: dict[str, Setting] = {}

    @field_validator("chat_template_kwargs")
    @classmethod
    def _names_are_free(cls, kwargs: dict[str, Setting]) -> dict[str, Setting]:
        if taken := sorted(_OWN_ARGUMENTS & kwargs.keys()):
            raise ValueError(f"'{taken[0]}' is set by the study itself: leave it out")
        return kwargs

    def template_settings(self) -> dict[str, Any]:
        """These settings alone, as JSON: what rendered text depends on besides model and messages."""
        return self.model_dump(mode="json", include=set(TemplateSettings.model_fields))


class ChatTemplate:
    """How a tokenizer writes conversations.

    ends: ids at which its model stops generating, besides the tokenizer's end token. StudyError if the settings name a
    template that the tokenizer does not have, or if its template draws text by chance.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        settings: TemplateSettings | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        self.tokenizer, self.settings = tokenizer, settings or TemplateSettings()
        self.source = _chosen(tokenizer, self.settings.chat_template)
        if found := _BY_CHANCE.search(self.source):
            raise StudyError(
                f"the model's chat template draws text by chance ({found[0]!r}), so no two runs would see the same: "
                "give the model another chat template."
            )
        added = tokenizer.added_tokens_decoder
        self.special = {token.content: index for index, token in added.items() if token.special}
        self.added = {token.content: index for index, token in added.items()}
        stopping = {*ends, tokenizer.eos_token_id}
        self.stopping = {text for text, index in self.added.items() if index in stopping}
        self._frames: dict[tuple[str, ...], Frame] = {}
        self._tails: dict[tuple[str, ...], str] = {}

    def text(self, messages: Sequence[Message], reply: bool = False) -> str:
        """The text for these messages, ending with an open assistant turn if `reply`.

        StudyError if the template refuses them.
        """
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=reply,
                strftime_now=_strftime_now,
                **self.settings.chat_template_kwargs,
            )
        except (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            roles = shortened(", ".join(message.role for message in messages))
            raise StudyError(
                f"the model's chat template refuses a conversation with the roles {roles} ({shortened(error)}): "
                "leave such rows out of the data or give the model another chat template."
            ) from error
        return str(text)

    def frame(self, roles: tuple[str, ...]) -> Frame:
        """What the template writes around the contents of messages with these roles."""
        if roles not in self._frames:
            self._frames[roles] = frame_of(self.text, roles, self.added, self.stopping, self._tails)
        return self._frames[roles]

    def end_token(self) -> int | None:
        """The added token with which the template ends a message of the assistant; None where it is plain text."""
        end = self.frame(("user", "assistant")).ends[-1]
        return next((index for text, index in self.added.items() if text and end.endswith(text)), None)

    def end_text(self) -> str:
        """What a model has to write to end an answer where the template ends it with plain text; else ""."""
        return "" if self.end_token() is not None else self.frame(("user", "assistant")).ends[-1]

    def about(self) -> dict[str, Any]:
        """What rendered text depends on, for a record: settings, and the date where the template reads it."""
        used = {"date": TODAY.date().isoformat()} if "strftime_now" in self.source else {}
        return self.settings.template_settings() | used


def load_chat_template(directory: Path, settings: TemplateSettings | None = None) -> ChatTemplate:
    """The chat template of a model directory; errors as `ChatTemplate`."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    ends = None
    if (directory / "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(directory, local_files_only=True).eos_token_id
    return ChatTemplate(tokenizer, settings, ids_of(ends))


def ids_of(value: int | Sequence[int] | None) -> list[int]:
    """The token ids of a config's entry, which may be none, one or several."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def plain_template(tokenizer: "PreTrainedTokenizerFast") -> str:
    """`PLAIN_TEMPLATE`, after the tokenizer's first token where it puts one before every text by itself.

    Gemma's base models have never seen a text without it.
    """
    own, bare = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    first = tokenizer.bos_token_id
    starts = first is not None and own[0] == first and bare[0] != first
    return ("{{ bos_token }}" if starts else "") + PLAIN_TEMPLATE


def _chosen(tokenizer: "PreTrainedTokenizerFast", name: str | None) -> str:
    templates = tokenizer.chat_template or plain_template(tokenizer)
    if isinstance(templates, str):
        templates = {DEFAULT: templates}
    wanted = name or DEFAULT
    if wanted not in templates:
        listed = shortened(", ".join(sorted(templates)))
        raise StudyError(
            f"the model has no chat template named {wanted!r}; it has {listed}: name one of these as "
            "data.chat_template in the study."
        )
    return str(templates[wanted])


def _strftime_now(form: str) -> str:
    """What transformers offers to templates under this name, without the clock ("%s" would read the time zone)."""
    seconds = str(int((TODAY - datetime(1970, 1, 1)).total_seconds()))
    return TODAY.strftime(re.sub(r"%%|%s", lambda found: seconds if found[0] == "%s" else "%%", form))
