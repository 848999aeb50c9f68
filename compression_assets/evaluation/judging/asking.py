"""Asking a judge until it answers: cache, retries with backoff, budgets, giving up. No metrics, no transport."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from compression_assets.evaluation.judging.cache import AnswerCache
from compression_assets.evaluation.judging.replies import REASON, JudgeError, Reply, Shape
from compression_assets.evaluation.judging.settings import PatienceSettings

if TYPE_CHECKING:
    from tenacity import RetryCallState

HIDDEN = "[key hidden]"
LONGEST_WAIT = 60.0
"""Seconds between two attempts at most, unless the judge asks for more."""


class Backend(Protocol):
    """Who is asked. Its answers may be anything; errors that the world causes are JudgeErrors.

    name: for people. identity: JSON of everything that its answers depend on, no secrets; the cache's key.
    log_probs: whether it gives token probabilities for a score. parallel: whether questions may overlap.
    secret: what may never be shown, "" for none.
    """

    name: str
    identity: dict[str, Any]
    log_probs: bool
    parallel: bool
    secret: str

    async def ask(self, prompt: str, shape: Shape) -> Reply: ...

    async def close(self) -> None: ...


@dataclass
class Asker:
    """Asks one judge on behalf of one run, and counts.

    asked: questions that the judge answered now; cached: those it had answered before; tokens: paid for now.
    failures: questions in a row that got no answer.
    """

    backend: Backend
    cache: AnswerCache
    patience: PatienceSettings
    asked: int = 0
    cached: int = 0
    tokens: int = 0
    failures: int = 0
    last_reason: str = ""
    _started: float = field(default_factory=time.monotonic)

    @property
    def dead(self) -> bool:
        """Whether the judge has answered nothing yet and failed often enough to be given up."""
        return self.asked == 0 and self.failures >= self.patience.give_up_after

    async def ask(self, prompt: str, shape: Shape) -> Reply:
        """A valid answer, from the cache or from the judge. Raises JudgeError with a reason that holds no secret."""
        if (known := self.cache.get(self.backend.identity, prompt, shape)) is not None:
            self.cached += 1
            return known
        problem: JudgeError | None = None
        try:
            reply = await self._persistently(prompt, shape)
        except JudgeError as error:
            problem = error
        if problem is not None:
            self.failures += 1
            self.last_reason = self._clean(problem.reason)
            # Raised out here, so that no traceback carries along what the judge said word by word.
            raise JudgeError(self.last_reason, transient=problem.transient)
        reply = Reply(self._clean(reply.text, len(reply.text)), reply.top, reply.tokens)
        self.cache.put(self.backend.identity, prompt, shape, reply)
        self.asked += 1
        self.tokens += reply.tokens
        self.failures = 0
        return reply

    async def _persistently(self, prompt: str, shape: Shape) -> Reply:
        from tenacity import AsyncRetrying, retry_if_exception

        if self._time_left() <= 0:
            raise JudgeError(f"the {self.patience.run_seconds:g} s for this model were spent", transient=True)
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, JudgeError) and error.transient),
            wait=self._pause,
            stop=self._enough,
            reraise=True,
        )
        reply: Reply = await retrying(self._once, prompt, shape)
        return reply

    async def _once(self, prompt: str, shape: Shape) -> Reply:
        limit = self.patience.timeout_seconds
        try:
            reply = await asyncio.wait_for(self.backend.ask(prompt, shape), limit)
        except TimeoutError:
            raise JudgeError(f"it did not answer within {limit:g} s", transient=True) from None
        return reply.checked(shape)

    def _pause(self, state: "RetryCallState") -> float:
        from tenacity import wait_exponential_jitter

        first = self.patience.backoff_seconds
        error = state.outcome.exception() if state.outcome else None
        wanted = error.retry_after if isinstance(error, JudgeError) else 0.0
        backoff = wait_exponential_jitter(initial=first, max=LONGEST_WAIT, jitter=first)
        return float(max(backoff(state), wanted))

    def _enough(self, state: "RetryCallState") -> bool:
        # A judge that has failed several questions in a row gets one attempt at each of the rest until it answers.
        attempts = 1 if self.failures >= self.patience.give_up_after else self.patience.attempts
        spent = (state.seconds_since_start or 0.0) + state.upcoming_sleep
        return (
            state.attempt_number >= attempts
            or spent > self.patience.item_seconds
            or state.upcoming_sleep > self._time_left()
        )

    def _time_left(self) -> float:
        return self.patience.run_seconds - (time.monotonic() - self._started)

    def _clean(self, text: str, length: int = REASON) -> str:
        if self.backend.secret:
            text = text.replace(self.backend.secret, HIDDEN)
        return text[:length]
