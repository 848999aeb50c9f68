"""Does what each step does alone predict which order of the steps is best?

"Weaker perturbation first" (arXiv 2603.18426): of several compression steps the one that disturbs the model least
should come first. An order is the further from that rule the more pairs of its steps stand the other way round. If the
rule holds, the more of these inversions, the worse the model at its end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
ORDERS_NEEDED = 12
SEEDS_NEEDED = 3


@dataclass(frozen=True)
class Agreement:
    """rho: Spearman's rank correlation of inversions with the loss, over orders; 1 where the rule predicts all ranks.

    lo, hi: 95 % percentiles of its bootstrap, over orders and seeds drawn together; None where too few draws have one.
    undefined: draws without a correlation, all of whose orders are equal in one of the two.
    """

    rho: float | None
    lo: float | None
    hi: float | None
    orders: int
    seeds: int
    undefined: int

    def verdict(self) -> str:
        """By a rule that was fixed before any figure: the interval lies on one side of zero, or nothing is decided."""
        if self.orders < ORDERS_NEEDED or self.seeds < SEEDS_NEEDED:
            needed = f"it takes {ORDERS_NEEDED} and {SEEDS_NEEDED}"
            return f"no verdict from {self.orders} orders and {self.seeds} seeds: {needed}"
        if self.lo is None or self.hi is None or self.lo <= 0 <= self.hi:
            return "undecided: the interval includes zero"
        return "supported" if self.lo > 0 else "contradicted: the order of the rule is the worse one"


def inversions(order: Sequence[str], perturbation: Mapping[str, float]) -> float:
    """Pairs of steps of an order whose first is the stronger one; a pair of equals counts a half."""
    pairs = [(perturbation[first], perturbation[later]) for first, later in combinations(order, 2)]
    return sum(1.0 if first > later else 0.5 if first == later else 0.0 for first, later in pairs)


def agreement(predicted: Sequence[float], loss: Sequence[Sequence[float]], seed: int = 0) -> Agreement:
    """Of inversions [orders] with losses [orders][seeds], such as log-perplexities; over seeds their mean counts."""
    import numpy as np

    rule, measured = np.asarray(predicted, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    orders, seeds = measured.shape
    generator = np.random.default_rng(seed)
    drawn_orders = generator.integers(orders, size=(RESAMPLES, orders))
    drawn_seeds = generator.integers(seeds, size=(RESAMPLES, seeds))
    means = measured[:, drawn_seeds].mean(-1).T
    drawn = spearman(rule[drawn_orders], np.take_along_axis(means, drawn_orders, axis=1))
    defined = drawn[~np.isnan(drawn)]
    (rho,) = spearman(rule[None], measured.mean(1)[None]).tolist()
    lo, hi = np.quantile(defined, [0.025, 0.975]).tolist() if 2 * len(defined) > RESAMPLES else (None, None)
    return Agreement(None if rho != rho else rho, lo, hi, orders, seeds, int(RESAMPLES - len(defined)))


def spearman(first: "np.ndarray", second: "np.ndarray") -> "np.ndarray[Any, Any]":
    """Rank correlation of each row of two arrays [rows, n], of equal values the mean rank; NaN for a constant row."""
    import numpy as np
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=1) for values in (first, second)]
    a, b = (one - one.mean(1, keepdims=True) for one in ranks)
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), size, out=np.full(len(size), np.nan), where=size > 0)
