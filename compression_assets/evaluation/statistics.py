"""Intervals of metrics and of differences between models, by resampling items. What is measured is not known here.

Every metric is a function of its items' sums (`rows.MetricRow.aggregate`), so that one bootstrap serves them all:
items are drawn with replacement (conversations for perplexity, questions for answers), and the ratio of sums is
computed anew.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compression_assets.evaluation.rows import SCORE, MetricRow, Sample
from compression_assets.evaluation.settings import StatisticsSettings

if TYPE_CHECKING:
    import numpy as np

BATCH = 2_000_000
"""Resampled values that are held at once, in each array."""


def with_intervals(
    rows: Sequence[MetricRow], samples: Sequence[Sample], settings: StatisticsSettings, seed: int
) -> list[MetricRow]:
    """The rows with `lo` and `hi` filled where the metric has a value and at least two items.

    Bias-corrected accelerated bootstrap (BCa; Efron 1987, as scipy.stats.bootstrap computes it), seeded. Where
    all items agree it is not defined: a score then has the Wilson interval of a proportion, which bounds the mean of
    anything between 0 and 1, and any other metric has none.
    """
    import numpy as np

    filled = []
    for row in rows:
        own = [sample for sample in samples if sample.metric == row.metric and sample.value is not None]
        if row.value is None or len(own) < 2:
            filled.append(row)
            continue
        values = np.array([sample.value for sample in own], dtype=np.float64)
        weights = np.array([sample.weight for sample in own], dtype=np.float64)
        lo, hi = interval(values, weights, row, settings, seed)
        filled.append(replace(row, lo=lo, hi=hi))
    return filled


def interval(
    values: "np.ndarray", weights: "np.ndarray", row: MetricRow, settings: StatisticsSettings, seed: int
) -> tuple[float | None, float | None]:
    """Both ends for one metric. values, weights: [items]."""
    import numpy as np

    ratios = values / weights
    if np.ptp(ratios) == 0:
        return _of_agreeing_items(float(ratios[0]), len(ratios), row, settings)

    def statistic(values: "np.ndarray", weights: "np.ndarray", axis: int) -> Any:
        return aggregate(values.sum(axis) / weights.sum(axis), row.aggregate)

    lo, hi = bootstrap((values, weights), statistic, settings, seed)
    return float(lo), float(hi)


def aggregate(mean: Any, how: str) -> Any:
    """From sum(value) / sum(weight) to the metric."""
    import numpy as np

    return np.exp(mean) if how == "exp_mean" else mean


def bootstrap(
    data: "tuple[np.ndarray, ...]", statistic: Any, settings: StatisticsSettings, seed: int
) -> "tuple[np.ndarray, np.ndarray]":
    """Ends of the BCa interval of a statistic of paired arrays, each [..., items]; the same draws for all rows.

    Where BCa is not defined (every draw lies on one side of the estimate), the percentiles of the draws.
    """
    import warnings

    import numpy as np
    from scipy import stats

    elements = max(array.size for array in data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            data,
            statistic,
            n_resamples=settings.resamples,
            batch=max(1, BATCH // elements),
            vectorized=True,
            paired=True,
            axis=-1,
            confidence_level=settings.confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    tail = (1 - settings.confidence) / 2
    percentiles = np.quantile(found.bootstrap_distribution, [tail, 1 - tail], axis=-1)
    ends = found.confidence_interval.low, found.confidence_interval.high
    lo, hi = (np.where(np.isnan(end), fallback, end) for end, fallback in zip(ends, percentiles, strict=True))
    return lo, hi


def _of_agreeing_items(
    value: float, items: int, row: MetricRow, settings: StatisticsSettings
) -> tuple[float | None, float | None]:
    from scipy import stats

    if row.unit != SCORE or value not in (0.0, 1.0):
        return None, None
    found = stats.binomtest(int(value * items), items).proportion_ci(settings.confidence, method="wilson")
    return float(found.low), float(found.high)
