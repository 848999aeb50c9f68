"""Is the judge any good? Planted answers whose order is known, and how often the judge keeps to it.

Each planted question has a right, a wrong, an off-topic and an empty answer. A pair is right when the better answer
gets the higher score; a tie is not, since a judge that gives everything the same score tells nothing.
The empty answer is put to the judge in words; in scoring it is worth 0 without asking.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from compression_assets.evaluation.judging.prompts import CORRECTNESS, PROMPT_ALIGNMENT, RELEVANCE, Case
from compression_assets.evaluation.judging.scoring import Outcome

RIGHT, WRONG, OFF_TOPIC, EMPTY = "right", "wrong", "off_topic", "empty"
KINDS = (RIGHT, WRONG, OFF_TOPIC, EMPTY)
SHOWN_EMPTY = "(The answer is empty.)"
FILE = "planted_answers.jsonl"
RESULT = "calibration.json"
"""What an artifact keeps of a calibration (`write_calibration`)."""

PAIRS = {
    CORRECTNESS: ((RIGHT, WRONG), (RIGHT, OFF_TOPIC), (RIGHT, EMPTY)),
    RELEVANCE: ((RIGHT, OFF_TOPIC), (RIGHT, EMPTY), (WRONG, OFF_TOPIC), (WRONG, EMPTY)),
    PROMPT_ALIGNMENT: ((RIGHT, OFF_TOPIC), (RIGHT, EMPTY)),
}
"""Metric -> (better, worse). A wrong answer is as relevant as a right one; whether it is better than an off-topic one
in correctness is nobody's business. A wrong answer may still keep to the prompt, so alignment says nothing of it."""

SUMS = {"g_eval": (CORRECTNESS, RELEVANCE)}
"""Columns that are made of others are tried on the pairs of those together."""

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Accuracy:
    """Pairwise accuracy of one column of the leaderboard: `right` of `pairs`, 95 % interval lo..hi.

    failed: pairs that were not judged; accuracy, lo and hi are None when none was.
    detail: "correctness right>wrong: 3 of 24" and the like.
    """

    metric: str
    pairs: int
    right: int
    failed: int
    accuracy: float | None
    lo: float | None
    hi: float | None
    threshold: float
    trusted: bool
    detail: str


@dataclass(frozen=True)
class Calibration:
    """What the planted answers say about a judge, by column."""

    judge: str
    questions: int
    scores: tuple[Accuracy, ...]

    def of(self, column: str) -> Accuracy:
        return next(score for score in self.scores if score.metric == column)

    def doubt(self, column: str) -> str:
        """Why a column is not to be trusted, "" when it is."""
        score = self.of(column)
        if score.trusted:
            return ""
        if score.accuracy is None:
            return f"UNTRUSTED: {self.judge} judged none of the planted answers"
        return (
            f"UNTRUSTED: {self.judge} puts {score.accuracy:.0%} of {score.pairs} planted pairs in the right order "
            f"(at least {score.lo:.0%}, needed {score.threshold:.0%})"
        )

    def table(self) -> list[dict[str, Any]]:
        """Rows of the table `judge_calibration`."""
        return [{"judge": self.judge, "questions": self.questions, **asdict(score)} for score in self.scores]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        content = json.loads(text)
        scores = tuple(Accuracy(**score) for score in content.pop("scores"))
        return cls(scores=scores, **content)


def write_calibration(found: Calibration, directory: Path) -> None:
    """Write `calibration.json`."""
    (directory / RESULT).write_text(found.to_json())


def read_calibration(directory: Path) -> Calibration:
    """Read what `write_calibration` wrote."""
    return Calibration.from_json((directory / RESULT).read_text())


def planted_cases(questions: int) -> list[Case]:
    """Four cases a question, for the first `questions` of the file that ships with the package."""
    text = (resources.files("compression_assets") / "data" / FILE).read_text()
    rows = [json.loads(line) for line in text.splitlines()[:questions]]
    return [
        Case(
            _id(row["id"], kind),
            row["question"],
            row["context"],
            (row["expected"],),
            row.get(kind) or SHOWN_EMPTY,
        )
        for row in rows
        for kind in KINDS
    ]


def calibrate(
    judge: str, cases: Sequence[Case], outcomes: Sequence[Outcome], threshold: float, seed: int
) -> Calibration:
    """Pairwise accuracy of every column. Its interval is the wider, at each end, of Wilson's over the pairs (never
    without width) and a bootstrap over the questions (the pairs of one question share an answer)."""
    values = {(outcome.metric, outcome.case): outcome.value for outcome in outcomes}
    questions = list(dict.fromkeys(case.id.rpartition(":")[0] for case in cases))
    columns = {name: (name,) for name in PAIRS} | SUMS
    scores = tuple(
        _accuracy(column, [_judged(values, metrics, question) for question in questions], threshold, seed)
        for column, metrics in columns.items()
    )
    return Calibration(judge, len(questions), scores)


Pair = tuple[str, bool | None]
"""Which pair, and whether it is in the right order; None when one of the two was not judged."""


def _judged(
    values: Mapping[tuple[str, str], float | None], metrics: tuple[str, ...], question: str
) -> list[Pair]:
    pairs: list[Pair] = []
    for metric in metrics:
        for better, worse in PAIRS[metric]:
            high, low = (values.get((metric, _id(question, kind))) for kind in (better, worse))
            ordered = None if high is None or low is None else high > low
            pairs.append((f"{metric} {better}>{worse}", ordered))
    return pairs


def _accuracy(column: str, by_question: list[list[Pair]], threshold: float, seed: int) -> Accuracy:
    every = [pair for pairs in by_question for pair in pairs]
    judged = [(name, ordered) for name, ordered in every if ordered is not None]
    right = sum(ordered for _, ordered in judged)
    failed = len(every) - len(judged)
    if not judged:
        return Accuracy(column, 0, 0, failed, None, None, None, threshold, False, "no pair was judged")
    lo, hi = _interval(by_question, right, len(judged), seed)
    names = dict.fromkeys(name for name, _ in judged)
    counts = {name: [ordered for other, ordered in judged if other == name] for name in names}
    detail = ", ".join(f"{name}: {sum(found)} of {len(found)}" for name, found in counts.items())
    trusted = lo >= threshold
    return Accuracy(
        column, len(judged), right, failed, right / len(judged), lo, hi, threshold, trusted, detail
    )


def _interval(by_question: list[list[Pair]], right: int, pairs: int, seed: int) -> tuple[float, float]:
    import numpy as np
    from scipy import stats

    wilson = stats.binomtest(right, pairs).proportion_ci(CONFIDENCE, method="wilson")
    found = [[ordered for _, ordered in pairs if ordered is not None] for pairs in by_question]
    hits, sizes = np.array([(sum(some), len(some)) for some in found if some], dtype=float).T
    if len(hits) < 2 or len(set(hits / sizes)) == 1:
        return float(wilson.low), float(wilson.high)
    resampled = stats.bootstrap(
        (hits, sizes),
        lambda hits, sizes, axis: hits.sum(axis) / sizes.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return min(float(wilson.low), float(resampled.low)), max(float(wilson.high), float(resampled.high))


def _id(question: str, kind: str) -> str:
    return f"{question}:{kind}"
