"""The rank correlation of orders and its interval against scipy, inversions against a formula, and the benchmark."""

import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.hypothesis import STUDY, Setting, shown
from compression_assets.evaluation.order_hypothesis import agreement, inversions, spearman
from compression_assets.study.files import load_study
from compression_assets_tests.project import Project

STRENGTH = {"KD": 0.1, "P": 0.4, "Q": 0.4, "X": 0.9}


def test_inversions_are_pairs_with_the_stronger_first() -> None:
    assert inversions(("KD", "P", "Q", "X"), STRENGTH) == 0.5
    assert inversions(("X", "Q", "P", "KD"), STRENGTH) == 5.5
    assert inversions(("KD", "X", "P"), STRENGTH) == 1
    for order in permutations(STRENGTH):
        assert inversions(order, STRENGTH) + inversions(order[::-1], STRENGTH) == 6


def test_the_correlation_is_scipys() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 5, (20, 12)).astype(float), generator.normal(size=(20, 12))
    first[3] = 2.0
    found = spearman(first, second)
    assert np.isnan(found[3])
    for row in (0, 1, 2, *range(4, 20)):
        assert found[row] == pytest.approx(stats.spearmanr(first[row], second[row]).statistic)


def test_the_interval_is_that_of_a_paired_bootstrap() -> None:
    generator = np.random.default_rng(1)
    predicted = generator.integers(0, 7, 14).astype(float)
    loss = predicted + generator.normal(scale=2.0, size=14)
    found = agreement(predicted.tolist(), loss[:, None].tolist())
    expected = stats.bootstrap(
        (predicted, loss),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert (found.lo, found.hi) == (
        pytest.approx(expected.low, abs=0.06),
        pytest.approx(expected.high, abs=0.06),
    )
    assert found.rho == pytest.approx(stats.spearmanr(predicted, loss).statistic)


def test_verdicts() -> None:
    generator = np.random.default_rng(3)
    predicted = [float(one % 7) for one in range(14)]
    noise = generator.normal(scale=0.5, size=(14, 3))
    for sign, verdict in ((1.0, "supported"), (-1.0, "contradicted"), (0.0, "undecided")):
        loss = sign * np.array(predicted)[:, None] + noise
        found = agreement(predicted, loss.tolist())
        assert found.verdict().startswith(verdict), found
        assert found.undefined < 10
    few = agreement(predicted[:6], noise[:6].tolist())
    assert few.verdict() == "no verdict from 6 orders and 3 seeds: it takes 12 and 3"
    constant = agreement([1.0] * 12, noise[:12].tolist())
    assert constant.rho is None and constant.lo is None and constant.undefined == 10_000


def test_seeds_that_disagree_widen_the_interval() -> None:
    predicted = [float(one) for one in range(12)]
    same = agreement(predicted, [[one, one, one] for one in predicted])
    other = np.random.default_rng(4).permutation(12)
    apart = agreement(
        predicted, [[one, one, 3.0 * swapped] for one, swapped in zip(predicted, other, strict=True)]
    )
    assert same.rho == same.lo == same.hi == pytest.approx(1)
    assert apart.lo is not None and apart.hi is not None and apart.hi - apart.lo > 0.3


def test_the_study_has_what_the_benchmark_reads() -> None:
    study = load_study(STUDY)
    sequences = {ordering.sequence for ordering in study.parsed_orderings}
    for budget in ("KD:maxtokens2048", "KD:maxtokens8192"):
        steps = ("P", "P:depth", budget, "Q")
        assert {f"FT-{step}" for step in steps} <= sequences
        orders = [tuple(one.split("-")[1:]) for one in sequences if one.count("-") == 4 and budget in one]
        assert len(orders) == 12 and all(sorted(order) == sorted(steps) for order in orders)
        before = Counter((a, b) for order in orders for i, a in enumerate(order) for b in order[i + 1 :])
        assert set(before.values()) == {6} and len(before) == 12
    assert len(study.seeds) == 3


def test_a_setting_is_shown_with_both_readings() -> None:
    steps = ("A", "B", "C")
    alone = {"A": -0.5, "B": 0.2, "C": 0.3}
    orders = tuple(permutations(steps))
    loss = {order: [float(inversions(order, alone))] * 2 for order in orders}
    text = shown(Setting(("FT",), orders, alone, loss))
    assert "alone behind FT: A -0.500, B +0.200, C +0.300" in text
    assert "signed: rank correlation +1.00" in text and "no verdict from 6 orders and 2 seeds" in text
    # By size A is the strongest and should come last.
    assert Setting((), orders, alone, loss).predicted("size")[("B", "C", "A")] == 0


@pytest.mark.timeout(700)
def test_it_reads_a_finished_study(finished_study: Project) -> None:
    code, output = finished_study.command(
        *(sys.executable, "-m", "benchmarks.hypothesis", "--study", str(finished_study.study_file)),
        PYTHONPATH=str(Path(__file__).parents[1]),
    )
    assert code == 0, output
    assert output.count("no verdict from 6 orders and 1 seeds") == 2
    assert "log-perplexity by each step alone: " in output
