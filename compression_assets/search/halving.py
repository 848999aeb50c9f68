"""Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): who goes on, and with how much. Pure arithmetic."""

import math
from collections.abc import Mapping


def budgets(rungs: int, keep: int) -> list[float]:
    """Share of the full budget at each rung: keep^-(rungs-1), …, 1/keep, 1."""
    return [float(keep) ** (rung + 1 - rungs) for rung in range(rungs)]


def promoted(values: Mapping[int, float | None], keep: int, *, higher_is_better: bool) -> list[int]:
    """The best of a rung by trial number: one in `keep`, rounded down, and at least one; the best first.

    values: trial -> what was measured; None, or what is no finite number, never goes on. Of equals the earlier one is
    better.
    """
    known = {trial: value for trial, value in values.items() if value is not None and math.isfinite(value)}
    sign = -1 if higher_is_better else 1
    ranked = sorted(known, key=lambda trial: (sign * known[trial], trial))
    return ranked[: max(1, len(values) // keep)]
