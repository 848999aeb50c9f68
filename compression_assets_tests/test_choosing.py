"""The choice of a model: one front, one meaning of "as large", limits that mean something."""

import math
import random
from pathlib import Path
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.evaluation.footprint import measure_footprint, weight_bytes
from compression_assets.reporting.choosing import Limits, choose, front_of, pareto_front
from compression_assets.study.goal import Goal
from compression_assets.takeaway.recommend import parse_limits
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets_tests.tiny_models import tiny_directory


def row(model: str, size: float, perplexity: float | None, f1: float | None = None) -> dict[str, Any]:
    return {"model": model, "ordering": model.upper(), "size_mib": size, "perplexity": perplexity, "f1": f1}


ROWS = [
    row("base", 100, 20, 0.5),
    row("kd", 100, 15, 0.4),
    row("p", 70, 30, 0.3),
    row("q", 40, 22, 0.4),
    row("p_q", 30, 45, 0.1),
    row("q_p", 30, 60, None),
    row("new", 10, None),
]


@pytest.mark.parametrize("higher_is_better", [False, True])
def test_the_front_is_what_nothing_beats_in_both(higher_is_better: bool) -> None:
    rng = random.Random(3)
    sign = 1 if higher_is_better else -1
    for _ in range(50):
        points = [(rng.randint(1, 5), rng.randint(1, 5)) for _ in range(8)]
        expected = [
            not any(
                other[0] <= one[0]
                and sign * other[1] >= sign * one[1]
                and (other[0] < one[0] or sign * other[1] > sign * one[1])
                for other in points
            )
            for one in points
        ]
        assert pareto_front(points, higher_is_better=higher_is_better) == expected


def test_the_front_goes_from_small_to_large() -> None:
    assert [found["model"] for found in front_of(ROWS[:-1])] == ["p_q", "q", "kd"]


@pytest.mark.parametrize(
    ("limits", "model", "why"),
    [
        (Limits(), "p_q", "the best perplexity of the 2 equally small models, 6 being measured"),
        (parse_limits(80, None, (), ()), "q", "the best perplexity of the 4"),
        (parse_limits(35, None, (), ()), "p_q", "the best perplexity of the 2"),
        (parse_limits(None, 25, (), ()), "q", "the best perplexity of the 1 smallest models, 3 being within"),
        (parse_limits(None, 60, (), ("f1=0.45",)), "base", "1 being within the limits"),
        (parse_limits(35, None, (), ("f1=0.2",)), None, "nearest is q: its size_mib is 40, above 35"),
        (parse_limits(5, 5, (), ()), None, "no model is within these limits"),
    ],
)
def test_the_choice_under_limits(limits: Limits, model: str | None, why: str) -> None:
    choice = choose(ROWS, limits)
    assert choice.model == model and why in choice.why


def test_of_models_equally_far_from_a_limit_the_best_is_named_and_why_in_digits_that_differ() -> None:
    rows = [row("worse", 95.265_001, 247), row("best", 95.265_002, 104), row("base", 256, 50)]
    why = choose(rows, Limits({"size_mib": 95.265}, {})).why
    assert why.endswith("nearest is best: its size_mib is 95.265002, above 95.265")


def test_a_goal_of_another_metric_is_followed_its_own_way() -> None:
    limits = Limits.of(Goal(best="f1", max={"size_mib": 100}))
    assert choose(ROWS, limits, "f1").model == "base"
    assert choose(ROWS, limits, "f1").rivals == ("base", "q", "kd", "p", "p_q")


def test_a_file_that_is_larger_by_some_printed_digits_is_as_small() -> None:
    rows = [
        row("kd_p_q", 95.2700, 98.4) | {"tensor_mib": 95.25},
        row("p_kd_q", 95.2701, 84.4) | {"tensor_mib": 95.25},
    ]
    choice = choose(rows, parse_limits(None, 100, (), ()))
    assert (choice.model, choice.front) == ("p_kd_q", ("p_kd_q",))


def test_tensors_of_the_same_shapes_and_format_are_as_large_whatever_is_in_them(tmp_path: Path) -> None:
    sizes = set()
    for seed in (0, 1):
        plain = tiny_directory(tmp_path / f"plain{seed}", seed=seed)
        quantize_checkpoint(plain, tmp_path / f"q{seed}", QuantizationRecipe(), "cpu")
        rows = {row.metric: row.value for row in measure_footprint(tmp_path / f"q{seed}", plain)}
        assert 0 < (rows["tensor_mib"] or 0) < weight_bytes(tmp_path / f"q{seed}") / 2**20
        sizes.add(rows["tensor_mib"])
    assert len(sizes) == 1


def test_limits_that_mean_nothing_are_refused() -> None:
    with pytest.raises(StudyError, match="'f2=x' cannot be read"):
        parse_limits(None, None, (), ("f2=x",))
    for admits_everything in (
        (math.nan, None, (), ()),
        (None, math.inf, (), ()),
        (None, None, (), ("f1=nan",)),
    ):
        with pytest.raises(StudyError, match="write a finite number"):
            parse_limits(*admits_everything)
    for name in ("ordering", "model", "notes", "perplexty"):
        with pytest.raises(StudyError, match=f"no model has a metric '{name}': (did you mean|allowed)"):
            choose(ROWS, parse_limits(None, None, (), (f"{name}=1",)))
    with pytest.raises(StudyError, match="nothing has been measured"):
        choose([ROWS[-1]], Limits())
