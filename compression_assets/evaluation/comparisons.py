"""Differences between models over the same items: how large, how certain, and what is left after many looks.

For each metric and pair of models: the difference of the two values over the items that both have, its bootstrap
interval, the p-value of a paired randomisation test, and that p-value corrected for the number of pairs (Holm 1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil
from typing import TYPE_CHECKING

from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.settings import StatisticsSettings
from compression_assets.evaluation.statistics import aggregate, bootstrap

if TYPE_CHECKING:
    import numpy as np

SIGNS_AT_ONCE = 4_000_000
"""Random signs that are held in memory together."""

OTHER_UNITS = "not over the same tokens: the models cut the same text differently"
NO_ITEMS = "fewer than two items have a value for both"
SAME_DIFFERENCE = "the difference is the same for every item: nothing to resample"


@dataclass(frozen=True)
class Measured:
    """What one model has of one metric."""

    row: MetricRow
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Comparison:
    """One pair and one metric. difference: value_a - value_b, both over the `n` items that they share.

    p_value: of the paired randomisation test; p_holm: corrected for the metric's number of pairs. better: the model
    that is better, where p_holm is below the study's significance. note: why figures are absent.
    """

    metric: str
    model_a: str
    model_b: str
    n: int
    value_a: float | None = None
    value_b: float | None = None
    difference: float | None = None
    lo: float | None = None
    hi: float | None = None
    p_value: float | None = None
    p_holm: float | None = None
    significant: bool | None = None
    better: str | None = None
    note: str = ""


def compare(
    metric: str, models: Mapping[str, Measured], settings: StatisticsSettings, seed: int
) -> list[Comparison]:
    """A row for each pair of models, in their order. Those that agree in their items are resampled together."""
    import numpy as np

    values, weights = _tables({name: one.samples for name, one in models.items()})
    there = ~np.isnan(values)
    names = list(models)
    groups: dict[bytes, list[tuple[int, int]]] = {}
    found: dict[tuple[int, int], Comparison] = {}
    for a, b in combinations(range(len(names)), 2):
        shared = there[a] & there[b]
        pair = Comparison(metric, names[a], names[b], int(shared.sum()))
        if shared.sum() < 2:
            found[a, b] = replace(pair, note=NO_ITEMS)
        elif (weights[a] != weights[b])[shared].any():
            found[a, b] = replace(pair, note=OTHER_UNITS)
        else:
            groups.setdefault(shared.tobytes(), []).append((a, b))
    how = next(iter(models.values())).row.aggregate if models else "mean"
    tested = sum(map(len, groups.values()))
    settings = settings.model_copy(update={"permutations": enough_permutations(settings, tested)})
    for key, pairs in groups.items():
        shared = np.frombuffer(key, dtype=bool)
        compared = _compare_group(
            metric, names, pairs, values[:, shared], weights[:, shared], how, settings, seed
        )
        found.update(zip(pairs, compared, strict=True))
    higher = next(iter(models.values())).row.higher_is_better if models else True
    return _corrected([found[pair] for pair in sorted(found)], settings, higher)


def enough_permutations(settings: StatisticsSettings, pairs: int) -> int:
    """The study's number, or as many as let the least p-value, corrected for so many pairs, be half of significance.

    With 9,999 no pair of 33 models could ever be told apart.
    """
    return max(settings.permutations, ceil(2 * pairs / settings.significance))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979, step-down): below alpha where the family-wise error stays below alpha."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def randomisation_test(differences: "np.ndarray", permutations: int, seed: int) -> "np.ndarray":
    """Two-sided p-values [rows] of paired differences [rows, items] under random exchanges of the two models.

    Each draw flips the sign of each item's difference with probability one half and sums (Fisher's randomisation
    test); p = (1 + draws at least as far from 0 as what was seen) / (1 + draws).
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    items = differences.shape[1]
    seen = np.abs(differences.sum(1))
    tolerance = 1e-9 * np.abs(differences).sum(1)
    further = np.zeros(len(differences), dtype=np.int64)
    done = 0
    while done < permutations:
        draws = min(permutations - done, max(1, SIGNS_AT_ONCE // items))
        signs = rng.integers(0, 2, size=(draws, items), dtype=np.int8).astype(np.float64) * 2 - 1
        further += (np.abs(signs @ differences.T) >= seen - tolerance).sum(0)
        done += draws
    return (1 + further) / (1 + permutations)


def _compare_group(
    metric: str,
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    values: "np.ndarray",
    weights: "np.ndarray",
    how: str,
    settings: StatisticsSettings,
    seed: int,
) -> list[Comparison]:
    """Pairs whose models share exactly these items, with the same weight each. values, weights: [models, items]."""
    import numpy as np

    first, second = (values[[pair[side] for pair in pairs]] for side in (0, 1))
    weight = weights[pairs[0][0]]

    def statistic(a: "np.ndarray", b: "np.ndarray", weight: "np.ndarray", axis: int) -> "np.ndarray":
        total = weight.sum(axis)
        difference: np.ndarray = aggregate(a.sum(axis) / total, how) - aggregate(b.sum(axis) / total, how)
        return difference

    p_values = randomisation_test(first - second, settings.permutations, seed)
    varied = np.ptp((first - second) / weight, axis=1) > 0
    lo, hi = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    if varied.any():
        lo[varied], hi[varied] = bootstrap((first[varied], second[varied], weight), statistic, settings, seed)
    ours, theirs = (aggregate(side.sum(1) / weight.sum(), how) for side in (first, second))
    return [
        Comparison(
            metric,
            names[a],
            names[b],
            n=values.shape[1],
            value_a=float(ours[index]),
            value_b=float(theirs[index]),
            difference=float(ours[index] - theirs[index]),
            lo=float(lo[index]) if varied[index] else None,
            hi=float(hi[index]) if varied[index] else None,
            p_value=float(p_values[index]),
            note="" if varied[index] else SAME_DIFFERENCE,
        )
        for index, (a, b) in enumerate(pairs)
    ]


def ratio_intervals(
    models: Mapping[str, Sequence[Sample]], base: str, settings: StatisticsSettings, seed: int
) -> dict[str, tuple[float, float]]:
    """Model -> interval of exp(mean) over the base's, over the items that both have: the same draws for both.

    For metrics that are exp of a mean, such as perplexity. A model without two such items, the base and one that
    differs from it alike in every item have none.
    """
    import numpy as np

    def ratio(difference: "np.ndarray", weight: "np.ndarray", axis: int) -> "np.ndarray":
        found: np.ndarray = np.exp(difference.sum(axis) / weight.sum(axis))
        return found

    values, weights = _tables(models)
    names = list(models)
    differences, found = values - values[names.index(base)], {}
    for name, difference, weight in zip(names, differences, weights, strict=True):
        shared = ~np.isnan(difference)
        same_units = (weight == weights[names.index(base)])[shared].all()
        if shared.sum() > 1 and same_units and np.ptp((difference / weight)[shared]) > 0:
            lo, hi = bootstrap((difference[shared], weight[shared]), ratio, settings, seed)
            found[name] = (float(lo), float(hi))
    return found


def _tables(models: Mapping[str, Sequence[Sample]]) -> "tuple[np.ndarray, np.ndarray]":
    """Values and weights, [models, items in their order]; NaN where a model has no value."""
    import numpy as np

    items = sorted({sample.item for samples in models.values() for sample in samples})
    column = {item: index for index, item in enumerate(items)}
    values = np.full((len(models), len(items)), np.nan)
    weights = np.full((len(models), len(items)), np.nan)
    for row, samples in enumerate(models.values()):
        for sample in samples:
            if sample.value is not None:
                values[row, column[sample.item]] = sample.value
                weights[row, column[sample.item]] = sample.weight
    return values, weights


def _corrected(
    found: list[Comparison], settings: StatisticsSettings, higher_is_better: bool | None
) -> list[Comparison]:
    tested = [one for one in found if one.p_value is not None]
    adjusted = dict(
        zip(map(id, tested), holm([one.p_value for one in tested if one.p_value is not None]), strict=True)
    )
    rows = []
    for one in found:
        if one.difference is None:
            rows.append(one)
            continue
        p_holm = adjusted[id(one)]
        significant = p_holm < settings.significance
        a_is_better = (one.difference > 0) == higher_is_better
        decided = significant and higher_is_better is not None
        winner = (one.model_a if a_is_better else one.model_b) if decided else None
        rows.append(replace(one, p_holm=p_holm, significant=significant, better=winner))
    return rows
