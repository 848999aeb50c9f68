"""The typed rows that every measurement returns. Nothing is computed here.

A metric that has samples is recomputed from them by one rule, whatever it measures: sum(value) / sum(weight) over the
items that did not fail, and exp() of that where `aggregate` says so.
"""

import math
from dataclasses import dataclass
from typing import Literal

SCORE = "0..1"
"""Unit of a metric that lies between 0 and 1."""


@dataclass(frozen=True)
class MetricRow:
    """One number about one model.

    value: None when it could not be measured, and `note` says why. n: how many tokens, items or files it rests on;
    n_failed: items that were asked for and have no value.
    higher_is_better: None where neither is. lo, hi: ends of its interval (`statistics.with_intervals`).
    aggregate: "mean" is sum(value) / sum(weight) of its samples, "exp_mean" the exponential of that.
    """

    metric: str
    value: float | None
    unit: str
    n: int
    higher_is_better: bool | None
    n_failed: int = 0
    lo: float | None = None
    hi: float | None = None
    note: str = ""
    aggregate: Literal["mean", "exp_mean"] = "mean"

    def __post_init__(self) -> None:
        for number in (self.value, self.lo, self.hi):
            if number is not None and not math.isfinite(number):
                raise ValueError(
                    f"{self.metric} is {number}: a metric that cannot be measured is None, not {number}"
                )
        if self.value is None and not self.note:
            raise ValueError(f"{self.metric} has no value, and its note does not say why")


@dataclass(frozen=True)
class Sample:
    """One item's part of a metric, so that sums and intervals can be recomputed.

    value: the item's sum over `weight` units (a log-likelihood over its tokens), or its score with weight 1.
    A failed item has no value and the reason in `error`.
    """

    metric: str
    item: str
    value: float | None
    weight: float = 1
    error: str = ""

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{self.metric} of {self.item} is {self.value}: a failed item has no value")
        if self.value is None and not self.error:
            raise ValueError(f"{self.metric} of {self.item} has no value, and no error says why")


def mean_row(
    metric: str,
    samples: list[Sample],
    *,
    higher_is_better: bool | None,
    unit: str = SCORE,
    coverage: float = 0.0,
    note: str = "",
) -> MetricRow:
    """The row of a metric that is the mean of `samples` (those of other metrics are passed over).

    coverage: the share of items that must have a value; with fewer, or with none at all, the row has no value.
    """
    own = [sample for sample in samples if sample.metric == metric]
    good = [sample for sample in own if sample.value is not None]
    failed = len(own) - len(good)
    value = None
    if not good:
        note = "no item has a value"
    elif len(good) < coverage * len(own):
        note = f"{failed} of {len(own)} items failed: coverage is below {coverage:.0%}"
    else:
        value = math.fsum(sample.value for sample in good if sample.value is not None)
        value /= math.fsum(sample.weight for sample in good)
    return MetricRow(metric, value, unit, len(good), higher_is_better, failed, note=note)
