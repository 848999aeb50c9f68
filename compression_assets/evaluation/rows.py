"""The typed rows that every measurement returns. Nothing is computed here."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricRow:
    """One number about one model. n: how many tokens, items or files it rests on."""

    metric: str
    value: float | None
    unit: str
    n: int
    higher_is_better: bool

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(
                f"{self.metric} is {self.value}: a metric that cannot be measured is None, not {self.value}"
            )


@dataclass(frozen=True)
class Sample:
    """One item's part of a metric, so that sums and intervals can be recomputed. weight: e.g. its tokens."""

    metric: str
    item: str
    value: float
    weight: int
