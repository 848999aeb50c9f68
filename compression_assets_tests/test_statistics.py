"""Intervals and comparisons against closed forms, other implementations, and many synthetic studies."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from compression_assets.evaluation.comparisons import (
    NO_ITEMS,
    OTHER_UNITS,
    Measured,
    compare,
    holm,
    randomisation_test,
    ratio_intervals,
)
from compression_assets.evaluation.rows import MetricRow, Sample, mean_row
from compression_assets.evaluation.settings import StatisticsSettings
from compression_assets.evaluation.statistics import with_intervals

SETTINGS = StatisticsSettings()


def scores(metric: str, values: Sequence[float | None]) -> list[Sample]:
    return [
        Sample(metric, f"q{index}", value, error="" if value is not None else "timed out")
        for index, value in enumerate(values)
    ]


def conversations(seed: int, n: int, shift: float = 0.0) -> list[Sample]:
    """Log-likelihoods of conversations of very different lengths, with a mean of about 2.5 + shift nats a token."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 200, n)
    nll = tokens * (2.5 + shift + rng.normal(0, 0.4, n))
    return [Sample("perplexity", str(index), float(nll[index]), int(tokens[index])) for index in range(n)]


def perplexity_row(samples: list[Sample]) -> MetricRow:
    mean = sum(sample.value or 0 for sample in samples) / sum(sample.weight for sample in samples)
    return MetricRow("perplexity", math.exp(mean), "1", 9, False, aggregate="exp_mean")


def test_the_interval_of_a_mean_is_the_normal_one_where_that_holds() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    row = with_intervals([mean_row("f1", scores("f1", values), higher_is_better=True)], [], SETTINGS, 0)[0]
    assert row.lo is None  # no samples, no interval
    (row,) = with_intervals([row], scores("f1", values), SETTINGS, 0)
    half = 1.96 * values.std(ddof=1) / 20
    assert row.value == pytest.approx(values.mean())
    assert (row.lo, row.hi) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.0015)


def test_perplexity_is_resampled_by_conversation_as_a_ratio_of_sums() -> None:
    samples = conversations(2, 300)
    (row,) = with_intervals([perplexity_row(samples)], samples, SETTINGS, 0)
    # Independently: the delta method for a ratio of means, on the log scale.
    nll = np.array([sample.value for sample in samples])
    tokens = np.array([sample.weight for sample in samples])
    ratio = nll.sum() / tokens.sum()
    error = np.sqrt(((nll - ratio * tokens) ** 2).sum()) / tokens.sum()
    expected = np.exp([ratio - 1.96 * error, ratio + 1.96 * error])
    assert (row.lo, row.hi) == pytest.approx(tuple(expected), rel=0.01)
    # Not over tokens: as if each were independent, the interval would be far too narrow.
    assert row.hi is not None
    assert math.log(row.hi) - ratio > 5 * 0.4 / math.sqrt(tokens.sum())


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    quick = StatisticsSettings(resamples=400)
    hits = 0
    for seed in range(200):
        values = np.random.default_rng(seed).beta(0.5, 2, 60)  # skewed, as F1 is
        samples = scores("f1", values)
        (row,) = with_intervals([mean_row("f1", samples, higher_is_better=True)], samples, quick, seed)
        assert row.lo is not None
        assert row.hi is not None
        hits += row.lo <= 0.2 <= row.hi
    assert 180 <= hits <= 198


def test_intervals_are_the_same_every_time_and_for_the_seed() -> None:
    samples = conversations(3, 50)
    row = perplexity_row(samples)
    first, again = (with_intervals([row], samples, SETTINGS, 5) for _ in range(2))
    assert first == again
    assert with_intervals([row], samples, SETTINGS, 6) != first


def test_items_that_all_agree_have_the_interval_of_a_proportion_or_none() -> None:
    samples = scores("f1", [0.0] * 60)
    (row,) = with_intervals([mean_row("f1", samples, higher_is_better=True)], samples, SETTINGS, 0)
    assert row.lo == 0.0
    assert row.hi == pytest.approx(3.8416 / (60 + 3.8416), abs=1e-4)  # Wilson's upper end for 0 of 60
    same = scores("f1", [0.25] * 60)
    (row,) = with_intervals([mean_row("f1", same, higher_is_better=True)], same, SETTINGS, 0)
    assert (row.value, row.lo, row.hi) == (0.25, None, None)


def test_failed_items_are_counted_and_too_many_of_them_leave_no_value() -> None:
    samples = scores("g_eval", [1.0, None, 0.5, None])
    row = mean_row("g_eval", samples, higher_is_better=True)
    assert (row.value, row.n, row.n_failed) == (0.75, 2, 2)
    row = mean_row("g_eval", samples, higher_is_better=True, coverage=0.95)
    assert (row.value, row.n, row.n_failed) == (None, 2, 2)
    assert "2 of 4 items failed" in row.note
    assert with_intervals([row], samples, SETTINGS, 0) == [row]
    nothing = mean_row("g_eval", scores("g_eval", [None]), higher_is_better=True)
    assert (nothing.value, nothing.note) == (None, "no item has a value")


def test_a_comparison_is_over_the_shared_items_and_names_the_better_model() -> None:
    rng = np.random.default_rng(4)
    base = rng.random(80)
    a = scores("f1", [*base, None, 0.9])
    b = scores("f1", [*(base - 0.1 + rng.normal(0, 0.02, 80)), 0.9, None])
    row = mean_row("f1", a, higher_is_better=True)
    (found,) = compare("f1", {"a": Measured(row, a), "b": Measured(row, b)}, SETTINGS, 0)
    assert found.n == 80
    assert found.difference == pytest.approx(0.1, abs=0.01)
    assert found.lo is not None
    assert found.hi is not None
    assert found.lo < 0.1 < found.hi < 0.11  # paired: far narrower than the spread of the items (0.3 / 9)
    assert (found.p_value, found.significant, found.better) == (1 / 10_000, True, "a")
    worse = MetricRow("f1", 0.5, "0..1", 80, higher_is_better=False)
    (found,) = compare("f1", {"a": Measured(worse, a), "b": Measured(worse, b)}, SETTINGS, 0)
    assert found.better == "b"


def test_a_difference_of_perplexities_against_a_bootstrap_written_out() -> None:
    a, b = conversations(5, 120), conversations(5, 120, shift=0.2)
    row = perplexity_row(a)
    (found,) = compare("perplexity", {"a": Measured(row, a), "b": Measured(row, b)}, SETTINGS, 0)
    nll_a, nll_b, tokens = (
        np.array(column)
        for column in zip(*((x.value, y.value, x.weight) for x, y in zip(a, b, strict=True)), strict=True)
    )
    draws = np.random.default_rng(9).integers(0, 120, (4000, 120))
    total = tokens[draws].sum(1)
    differences = np.exp(nll_a[draws].sum(1) / total) - np.exp(nll_b[draws].sum(1) / total)
    assert (found.lo, found.hi) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])), rel=0.04)
    assert found.better == "a"


def test_models_that_cut_the_text_differently_or_share_nothing_are_not_compared() -> None:
    a = conversations(6, 10)
    row = perplexity_row(a)
    other = [Sample("perplexity", one.item, one.value, one.weight + 1) for one in a]
    apart = [Sample("perplexity", f"x{one.item}", one.value, one.weight) for one in a]
    models = {"a": Measured(row, a), "b": Measured(row, other), "c": Measured(row, apart)}
    notes = {
        (one.model_a, one.model_b): (one.note, one.p_holm)
        for one in compare("perplexity", models, SETTINGS, 0)
    }
    assert notes == {
        ("a", "b"): (OTHER_UNITS, None),
        ("a", "c"): (NO_ITEMS, None),
        ("b", "c"): (NO_ITEMS, None),
    }


def test_models_that_differ_are_told_apart_however_many_there_are() -> None:
    rng = np.random.default_rng(0)
    models = {
        f"m{number}": Measured(
            MetricRow("f1", number / 50, "0..1", 12, True),
            scores("f1", (number / 50 + rng.normal(0, 1e-3, 12)).tolist()),
        )
        for number in range(40)
    }
    settings = StatisticsSettings(permutations=99, significance=0.4, resamples=100)
    rows = compare("f1", models, settings, 0)
    assert len(rows) == 780
    furthest = next(row for row in rows if (row.model_a, row.model_b) == ("m0", "m39"))
    assert furthest.significant and furthest.better == "m39"
    assert furthest.p_holm is not None and furthest.p_holm < 0.4


def test_the_interval_of_a_ratio_of_perplexities_is_that_of_paired_draws() -> None:
    base, other = conversations(1, 40), conversations(1, 40, shift=0.3)
    odd = [
        replace(sample, value=(sample.value or 0.0) * (1 + 0.1 * (index % 3)))
        for index, sample in enumerate(other)
    ]
    found = ratio_intervals({"base": base, "even": other, "odd": odd}, "base", StatisticsSettings(), 0)
    values = [np.array([sample.value for sample in own]) for own in (odd, base)]
    weights = np.array([sample.weight for sample in base])
    draws = np.random.default_rng(5).integers(0, 40, (20_000, 40))
    ratios = np.exp((values[0] - values[1])[draws].sum(1) / weights[draws].sum(1))
    assert "base" not in found
    assert found["odd"] == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), rel=0.02)


def test_equal_models_are_never_told_apart() -> None:
    """45 comparisons of ten equal models: without a correction two of them would be 'significant'."""
    rng = np.random.default_rng(7)
    models = {}
    for name in "abcdefghij":
        samples = scores("f1", rng.random(60))
        models[name] = Measured(mean_row("f1", samples, higher_is_better=True), samples)
    found = compare("f1", models, SETTINGS, 0)
    assert [(one.model_a, one.model_b) for one in found] == list(itertools.combinations("abcdefghij", 2))
    assert not any(one.significant for one in found)


def test_the_randomisation_test_is_scipys() -> None:
    a, b = np.random.default_rng(8).random((2, 40))
    (ours,) = randomisation_test((a - b)[None] + 0.08, 9_999, 0)
    theirs = stats.permutation_test(
        (a + 0.08, b),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        n_resamples=9_999,
        rng=1,
    )
    assert ours == pytest.approx(theirs.pvalue, abs=0.02)
    # All signs alike are 2 of 2^n patterns.
    (few,) = randomisation_test(np.array([[0.3, 0.2, 0.5]]), 9_999, 0)
    assert few == pytest.approx(0.25, abs=0.02)


def test_holms_correction_against_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
