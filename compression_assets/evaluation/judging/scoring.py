"""Judging many answers with one judge: a score or a reason for each, and for each a metric. No tables in here."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.asking import Asker
from compression_assets.evaluation.judging.judges import dead_judge, metric_of
from compression_assets.evaluation.judging.prompts import (
    METRICS,
    Case,
    deepeval_case,
    import_deepeval,
)
from compression_assets.evaluation.judging.replies import JudgeError
from compression_assets.store.reports import Report, no_report


@dataclass(frozen=True)
class Outcome:
    """One metric of one case: `value` in 0..1, or None and why the judge has none."""

    metric: str
    case: str
    value: float | None
    error: str = ""


def judge_cases(
    cases: Sequence[Case],
    asker: Asker,
    max_characters: int,
    asset: str,
    report: Report = no_report,
) -> list[Outcome]:
    """Every metric of every case, in the order METRICS x cases; a case has to have an answer that is not empty.

    asset: for the sentence. Raises StudyError when the judge answers none of the first questions; what it answered
    before is in the cache.
    """
    return asyncio.run(_judge_all(cases, asker, max_characters, asset, report))


async def _judge_all(
    cases: Sequence[Case], asker: Asker, max_characters: int, asset: str, report: Report
) -> list[Outcome]:
    import_deepeval()
    gate = asyncio.Semaphore(asker.patience.concurrency if asker.backend.parallel else 1)
    total = len(METRICS) * len(cases)
    done = 0
    given_up: StudyError | None = None

    async def one(name: str, case: Case) -> Outcome | None:
        nonlocal done, given_up
        async with gate:
            if asker.dead and given_up is None:
                # For good, even if a question that is still on its way gets an answer: the others were not asked.
                given_up = dead_judge(asker, asset)
            if given_up is not None:
                return None
            outcome = await _judge(name, case, asker, max_characters)
        done += 1
        report(done, total, "judging")
        return outcome

    try:
        outcomes = await asyncio.gather(*(one(name, case) for name in METRICS for case in cases))
    finally:
        await asker.backend.close()
    if asker.dead and given_up is None:
        given_up = dead_judge(asker, asset)
    if given_up is not None:
        raise given_up
    return [outcome for outcome in outcomes if outcome is not None]


async def _judge(name: str, case: Case, asker: Asker, max_characters: int) -> Outcome:
    from deepeval.errors import ContextWindowExceededError

    measured = metric_of(name, case, asker, max_characters)
    try:
        value = await measured.a_measure(deepeval_case(name, case, max_characters), _show_indicator=False)
    except JudgeError as error:
        return Outcome(name, case.id, None, error.reason)
    except ContextWindowExceededError as error:
        # DeepEval's own words for a JudgeError that mentions a context window.
        if not isinstance(error.__cause__, JudgeError):
            raise
        return Outcome(name, case.id, None, error.__cause__.reason)
    if not 0 <= value <= 1:
        raise RuntimeError(f"DeepEval scores {name} of {case.id} {value}, outside 0..1")
    return Outcome(name, case.id, float(value))
