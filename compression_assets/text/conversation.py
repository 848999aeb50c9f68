"""What was said, before any template or token."""

from dataclasses import dataclass

CONTENT_ROLES = ("user", "assistant")
ROLES = ("system", *CONTENT_ROLES)


@dataclass(frozen=True)
class Message:
    """One turn; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns of one conversation in order. id: names it in its source. where: the source's file and line."""

    id: str
    messages: tuple[Message, ...]
    where: str = ""
