"""Is the judge any good? Planted answers whose order is known, and how often the judge keeps to it.

A pair is right when the better answer gets the higher score; a tie is not, since a judge that gives everything the
same score tells nothing. Pairs are counted by kind, that is by what the worse answer does wrong or what makes the
better one hard to recognise. The empty answer is put to the judge in words; in scoring it is worth 0 without asking.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from compression_assets.evaluation.judging.prompts import CORRECTNESS, PROMPT_ALIGNMENT, RELEVANCE, Case
from compression_assets.evaluation.judging.scoring import Outcome
from compression_assets.evaluation.judging.settings import KINDS

SHOWN_EMPTY = "(The answer is empty.)"
FILE = "planted_answers.jsonl"
RESULT = "calibration.json"
"""What an artifact keeps of a calibration (`write_calibration`)."""
FROZEN = "8ae48c1290f0b67ef21240fe39ad28050aaee89ddb8afb0497c47ba378f3501b"
"""SHA-256 of the file, complete before any judge saw it."""
DESIGN, TEST = "design", "test"
"""Halves of the planted questions: prompts and formulas were chosen on the first, judges are tried on the second."""

ALL = "all"
"""The kind of a row that counts the plain kinds together; see `PLAIN`."""
PLAIN = ("wrong", "off_topic", "empty")
"""Kinds that decide, together, whether a column is trusted; a study may demand others one by one."""

PAIRS: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    CORRECTNESS: {
        "wrong": (("right", "wrong"),),
        "off_topic": (("right", "off_topic"),),
        "empty": (("right", "empty"),),
        "other_words": (("same", "wrong"),),
        "long": (("long", "wrong"),),
        "denial": (("right", "denial"),),
        "parroting": (("right", "parroting"),),
        "copying": (("right", "copying"),),
        "run_on": (("right", "run_on"),),
        "other_language": (("right", "other_language"),),
    },
    RELEVANCE: {
        "off_topic": (("right", "off_topic"), ("wrong", "off_topic")),
        "empty": (("right", "empty"), ("wrong", "empty")),
        "other_words": (("same", "off_topic"),),
        "long": (("long", "off_topic"),),
        "parroting": (("right", "parroting"),),
        "copying": (("right", "copying"),),
        "run_on": (("right", "run_on"),),
    },
    PROMPT_ALIGNMENT: {
        "off_topic": (("right", "off_topic"),),
        "empty": (("right", "empty"),),
        "long": (("long", "off_topic"),),
        "parroting": (("right", "parroting"),),
        "run_on": (("right", "run_on"),),
    },
}
"""Metric -> kind -> (better, worse). A wrong answer is as relevant as a right one; whether it is better than an
off-topic one in correctness is nobody's business. A wrong answer may keep to the prompt: alignment leaves it out."""

SUMS = {"g_eval": (CORRECTNESS, RELEVANCE)}
"""Columns that are made of others are tried on the pairs of those together."""

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Accuracy:
    """Pairwise accuracy of one column of the leaderboard on one kind: `right` of `pairs`, 95 % interval lo..hi.

    kind: of PAIRS, or ALL for the PLAIN ones together. failed: pairs that were not judged; accuracy, lo and hi are None
    when none was. trusted: of ALL, whether the judge passed as the study demands; of a kind, whether its accuracy is
    that high.
    detail: "correctness right>wrong: 3 of 24" and the like.
    """

    metric: str
    kind: str
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
    """What the planted answers say about a judge, by column and kind. demanded: kinds that have to be passed too."""

    judge: str
    questions: int
    scores: tuple[Accuracy, ...]
    demanded: tuple[str, ...] = ()

    def of(self, column: str, kind: str = ALL) -> Accuracy:
        return next(score for score in self.scores if (score.metric, score.kind) == (column, kind))

    def columns(self) -> list[Accuracy]:
        """The row ALL of every column."""
        return [score for score in self.scores if score.kind == ALL]

    def doubt(self, column: str) -> str:
        """Why a column is not to be trusted, "" when it is."""
        score = self.of(column)
        if score.trusted:
            return ""
        if score.accuracy is None:
            return f"UNTRUSTED: {self.judge} judged none of the planted answers"
        if score.lo is not None and score.lo >= score.threshold:
            failed = [kind.kind for kind in self._failed(column) if kind.kind in self.demanded]
            return f"UNTRUSTED: {self.judge} fails the demanded kind {', '.join(failed)}"
        return (
            f"UNTRUSTED: {self.judge} puts {score.accuracy:.0%} of {score.pairs} planted pairs in the right order "
            f"(at least {score.lo:.0%}, needed {score.threshold:.0%})"
        )

    def weakness(self, column: str) -> str:
        """Kinds of answers that the judge mistakes, in a few words; "" when there is none."""
        failed = [f"{kind.kind} ({kind.right} of {kind.pairs})" for kind in self._failed(column)]
        return f"weak on {', '.join(failed)}" if failed else ""

    def _failed(self, column: str) -> list[Accuracy]:
        return [
            score
            for score in self.scores
            if score.metric == column
            and score.kind != ALL
            and score.accuracy is not None
            and score.accuracy < score.threshold
        ]

    def table(self) -> list[dict[str, Any]]:
        """Rows of the table `judge_calibration`."""
        return [{"judge": self.judge, "questions": self.questions, **asdict(score)} for score in self.scores]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        content = json.loads(text)
        scores = tuple(Accuracy(**score) for score in content.pop("scores"))
        return cls(scores=scores, demanded=tuple(content.pop("demanded")), **content)


def write_calibration(found: Calibration, directory: Path) -> None:
    """Write `calibration.json`."""
    (directory / RESULT).write_text(found.to_json())


def read_calibration(directory: Path) -> Calibration:
    """Read what `write_calibration` wrote."""
    return Calibration.from_json((directory / RESULT).read_text())


def planted_cases(questions: int, half: str = TEST) -> list[Case]:
    """A case for every planted answer of the first `questions` of a half of the file that ships with the package.

    Raises RuntimeError when the file is not the one that was frozen.
    """
    text = (resources.files("compression_assets") / "data" / FILE).read_text()
    if sha256(text.encode()).hexdigest() != FROZEN:
        raise RuntimeError(f"{FILE} is not the frozen one: a judge's accuracy on it could not be compared")
    rows = [row for row in map(json.loads, text.splitlines()) if row["half"] == half][:questions]
    return [
        Case(_id(row["id"], kind), row["question"], row["context"], (row["expected"],), answer)
        for row in rows
        for kind, answer in _answers(row).items()
    ]


def _answers(row: Mapping[str, str]) -> dict[str, str]:
    written = ("right", "same", "long", "wrong", "off_topic", "denial", "other_language")
    beginning = " ".join(row["context"].split()[:4])
    return {kind: row[kind] for kind in written} | {
        "empty": SHOWN_EMPTY,
        "parroting": row["question"],
        "copying": row["context"],
        "run_on": " ".join([beginning] * 12),
    }


def calibrate(
    judge: str,
    cases: Sequence[Case],
    outcomes: Sequence[Outcome],
    threshold: float,
    seed: int,
    demanded: Sequence[str] = (),
) -> Calibration:
    """Pairwise accuracy of every column and kind. Its interval is the wider, at each end, of Wilson's over the pairs
    (never without width) and a bootstrap over the questions (the pairs of one question share an answer)."""
    values = {(outcome.metric, outcome.case): outcome.value for outcome in outcomes}
    questions = list(dict.fromkeys(case.id.rpartition(":")[0] for case in cases))
    scores: list[Accuracy] = []
    for column, metrics in ({name: (name,) for name in PAIRS} | SUMS).items():
        kinds = [
            _accuracy(
                column, kind, [_judged(values, metrics, (kind,), one) for one in questions], threshold, seed
            )
            for kind in KINDS
            if any(kind in PAIRS[metric] for metric in metrics)
        ]
        whole = _accuracy(
            column, ALL, [_judged(values, metrics, PLAIN, one) for one in questions], threshold, seed
        )
        passed = all(kind.trusted for kind in kinds if kind.kind in demanded)
        scores += [replace(whole, trusted=whole.trusted and passed), *kinds]
    return Calibration(judge, len(questions), tuple(scores), tuple(demanded))


Pair = tuple[str, bool | None]
"""Which pair, and whether it is in the right order; None when one of the two was not judged."""


def _judged(
    values: Mapping[tuple[str, str], float | None],
    metrics: tuple[str, ...],
    kinds: tuple[str, ...],
    question: str,
) -> list[Pair]:
    pairs: list[Pair] = []
    for metric in metrics:
        for better, worse in (pair for kind in kinds for pair in PAIRS[metric].get(kind, ())):
            high, low = (values.get((metric, _id(question, kind))) for kind in (better, worse))
            ordered = None if high is None or low is None else high > low
            pairs.append((f"{metric} {better}>{worse}", ordered))
    return pairs


def _accuracy(column: str, kind: str, by_question: list[list[Pair]], threshold: float, seed: int) -> Accuracy:
    every = [pair for pairs in by_question for pair in pairs]
    judged = [(name, ordered) for name, ordered in every if ordered is not None]
    right = sum(ordered for _, ordered in judged)
    failed = len(every) - len(judged)
    if not judged:
        return Accuracy(column, kind, 0, 0, failed, None, None, None, threshold, False, "no pair was judged")
    lo, hi = _interval(by_question, right, len(judged), seed)
    names = dict.fromkeys(name for name, _ in judged)
    counts = {name: [ordered for other, ordered in judged if other == name] for name in names}
    detail = ", ".join(f"{name}: {sum(found)} of {len(found)}" for name, found in counts.items())
    accuracy = right / len(judged)
    # Of a single kind there are too few pairs for the interval's end: its accuracy itself has to reach the threshold.
    trusted = (lo if kind == ALL else accuracy) >= threshold
    return Accuracy(column, kind, len(judged), right, failed, accuracy, lo, hi, threshold, trusted, detail)


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
