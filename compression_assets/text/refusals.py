"""Conversations that a model's chat template refuses: counted and named, and few enough, or an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from compression_assets.errors import StudyError
from compression_assets.tables import shortened
from compression_assets.text.conversation import Conversation

NAMED = 20
"""Refusals that a record names; all are counted."""


@dataclass(frozen=True)
class Refusal:
    """A conversation's id and place in its source, and the sentence that says why it was refused."""

    id: str
    where: str
    reason: str


class Refusals:
    """Refusals so far. allowed: the share of all conversations that may be refused, 0 to 1."""

    def __init__(self, allowed: float) -> None:
        self.allowed = allowed
        self.found: list[Refusal] = []

    def __len__(self) -> int:
        return len(self.found)

    @contextmanager
    def noted(self, conversation: Conversation) -> Iterator[None]:
        """Note the StudyError of what is done with a conversation instead of raising it."""
        try:
            yield
        except StudyError as error:
            where = conversation.where or f"conversation {conversation.id!r}"
            self.found.append(Refusal(shortened(conversation.id), shortened(where), str(error)))

    def require_few(self, conversations: int) -> None:
        """StudyError if all of so many conversations, or more than the allowed share, were refused."""
        count = len(self)
        if count and (count == conversations or count > self.allowed * conversations):
            first = self._in_order()[0]
            raise StudyError(
                f"{count:,} of {conversations:,} conversations are refused, more than the {self.allowed:.0%} of "
                f"data.max_refused; {first.where}: {first.reason}"
            )

    def about(self) -> list[dict[str, str]]:
        """The first refusals by place in the source, for a record."""
        return [asdict(refusal) for refusal in self._in_order()[:NAMED]]

    def _in_order(self) -> list[Refusal]:
        """By place in the source: "line 9" before "line 10"."""
        return sorted(self.found, key=lambda refusal: (len(refusal.where), refusal.where))
