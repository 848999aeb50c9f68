"""From answers and outcomes to typed rows: what is judged, what an empty answer is worth, what counts as covered."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from compression_assets.evaluation.answers import Answer
from compression_assets.evaluation.judging.calibration import Calibration
from compression_assets.evaluation.judging.prompts import (
    CORRECTNESS,
    METRICS,
    PROMPT_ALIGNMENT,
    RELEVANCE,
    Case,
)
from compression_assets.evaluation.judging.scoring import Outcome
from compression_assets.evaluation.rows import SCORE, MetricRow, Sample, mean_row

G_EVAL = "g_eval"
COLUMNS = (G_EVAL, *METRICS)
"""What is measured of a model; g_eval is the mean of correctness and relevance, item by item."""


def cases_of(answers: Sequence[Answer], items: int) -> list[Case]:
    """The first `items` answers as cases; all models answer the same questions in the same order."""
    return [
        Case(answer.id, answer.question, answer.context, answer.expected, answer.answer.strip())
        for answer in answers[:items]
    ]


def empty_outcomes(cases: Sequence[Case]) -> list[Outcome]:
    """An empty answer is worth 0 in every metric by definition; no judge is asked (DeepEval refuses empty answers)."""
    return [Outcome(name, case.id, 0.0) for name in METRICS for case in cases if not case.answer]


def to_samples(cases: Sequence[Case], outcomes: Sequence[Outcome]) -> list[Sample]:
    """A sample for every column and case, failed ones with their reason."""
    found = {(outcome.metric, outcome.case): outcome for outcome in outcomes}
    samples = []
    for case in cases:
        halves = [found[name, case.id] for name in (CORRECTNESS, RELEVANCE)]
        values = [half.value for half in halves if half.value is not None]
        mean = sum(values) / 2 if len(values) == 2 else None
        error = next((half.error for half in halves if half.value is None), "")
        samples.append(Sample(G_EVAL, case.id, mean, error=error))
        for name in METRICS:
            outcome = found[name, case.id]
            samples.append(Sample(name, case.id, outcome.value, error=outcome.error))
    return samples


def to_rows(samples: Sequence[Sample], coverage: float, calibration: Calibration) -> list[MetricRow]:
    """The four columns, and beside them what the judge's own test says about them.

    `judge_accuracy` and `judge_trusted` (1 or 0) speak for g_eval, `prompt_alignment_judge_accuracy` and
    `prompt_alignment_judge_trusted` for prompt alignment. The note of an untrusted column says so.
    """
    rows = []
    for column in COLUMNS:
        row = mean_row(column, list(samples), higher_is_better=True, coverage=coverage)
        notes = [calibration.doubt(column) or calibration.weakness(column), _why(row, samples)]
        rows.append(replace(row, note="; ".join(note for note in notes if note)))
    return [
        *rows,
        *_test_rows("judge", G_EVAL, calibration),
        *_test_rows("prompt_alignment_judge", PROMPT_ALIGNMENT, calibration),
    ]


def coverage_problem(rows: Sequence[MetricRow]) -> str:
    """Why columns are NULL, in a few words; "" when none is."""
    return "; ".join(
        f"{row.metric}: {row.note}" for row in rows if row.metric in COLUMNS and row.value is None
    )


def _why(row: MetricRow, samples: Sequence[Sample]) -> str:
    """How many items failed and the commonest reason."""
    if not row.n_failed:
        return row.note
    reasons = Counter(sample.error for sample in samples if sample.metric == row.metric and sample.error)
    reason, times = reasons.most_common(1)[0]
    note = row.note or f"{row.n_failed} of {row.n + row.n_failed} items were not judged"
    return f"{note} ({times} times: {reason})"


def _test_rows(prefix: str, column: str, calibration: Calibration) -> list[MetricRow]:
    score = calibration.of(column)
    note = f"judge: {calibration.judge}"
    trusted = float(score.trusted)
    return [
        MetricRow(
            f"{prefix}_accuracy",
            score.accuracy,
            SCORE,
            score.pairs,
            True,
            score.failed,
            score.lo,
            score.hi,
            note,
        ),
        MetricRow(f"{prefix}_trusted", trusted, "1 or 0", score.pairs, True, score.failed, note=note),
    ]
