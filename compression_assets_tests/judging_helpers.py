"""Questions, patience and askers for the tests of judging. No test in here."""

from pathlib import Path
from typing import Any

from compression_assets.evaluation.judging.asking import Asker
from compression_assets.evaluation.judging.cache import AnswerCache
from compression_assets.evaluation.judging.judges import open_backend
from compression_assets.evaluation.judging.prompts import METRICS, Case
from compression_assets.evaluation.judging.scoring import Outcome, judge_cases
from compression_assets.evaluation.judging.settings import OpenAiJudge, PatienceSettings
from compression_assets_tests.judge_server import JudgeServer

QUICK = PatienceSettings(
    concurrency=4,
    timeout_seconds=30.0,
    attempts=3,
    backoff_seconds=0.01,
    item_seconds=120.0,
    run_seconds=120.0,
    give_up_after=3,
)
HASTY = QUICK.model_copy(update={"timeout_seconds": 1.0, "attempts": 2})
"""For a judge that hangs; the others may take their time on a busy machine."""

CASES = [
    Case(f"q{number}", f"What is {number}?", f"It is {number}.", (str(number),), f"It is {number}.")
    for number in range(4)
]
QUESTIONS = len(CASES) * len(METRICS)


def asker(server: JudgeServer, cache: Path, patience: PatienceSettings = QUICK, **settings: Any) -> Asker:
    """Asks a server through an OpenAI-compatible judge."""
    judge = OpenAiJudge(kind="openai_compatible", base_url=f"{server.url}/v1", **{"model": "m", **settings})
    return Asker(open_backend(judge, None, "", "cpu", cache), AnswerCache(cache), patience)


def judged(asking: Asker, cases: list[Case] = CASES) -> list[Outcome]:
    return judge_cases(cases, asking, 1000, "judged_q")


def values(outcomes: list[Outcome], metric: str) -> list[float | None]:
    return [outcome.value for outcome in outcomes if outcome.metric == metric]
