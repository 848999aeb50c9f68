"""What survives quantization: the closed form against simulated updates, sums over matrices, verdicts."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from compression_assets.evaluation.survival import (
    adam_rms_bounds,
    measure_survival,
    measure_update,
    predict_for_grid,
    total,
)
from compression_assets.takeaway.survival_verdict import item_interval, placing_the_paper, t_interval, verdict
from compression_assets.techniques.quantization.rounding import Rounding, quantize
from compression_assets.weights.formats import nf4


def drawn(shape: tuple[int, int], scale: float, seed: int) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rms", [1e-3, 5e-3, 1e-2, 3e-2])
def test_the_closed_form_is_what_happens_to_gaussian_updates(rms: float) -> None:
    grid = nf4.quantize(drawn((256, 256), 0.1, 0))
    origin = nf4.dequantize(grid)
    trained = origin + drawn((256, 256), rms, 1)
    update = measure_update(origin, grid, trained, on_grid=True)
    kept = measure_survival(update, quantize(trained, Rounding(), grid=grid))
    assert update.rms == pytest.approx(rms, rel=0.02)
    assert update.predicted is not None and kept.surviving is not None
    assert kept.surviving == pytest.approx(update.predicted, abs=0.015)
    assert kept.codes_changed == pytest.approx(update.beyond, abs=1e-4)
    assert predict_for_grid({"w": grid}, update.rms) == pytest.approx(update.predicted)


def test_small_updates_are_undone_on_the_grid_only_and_kept_on_average() -> None:
    weight, small = drawn((256, 256), 0.1, 0), drawn((256, 256), 1e-3, 1)
    grid = nf4.quantize(weight)
    on, off = nf4.dequantize(grid), weight
    moved = measure_update(on, grid, on + small, on_grid=True)
    nearest = measure_survival(moved, quantize(on + small, Rounding()))
    stochastic = measure_survival(moved, quantize(on + small, Rounding("stochastic", seed="0")))
    assert nearest.codes_changed == 0 and nearest.surviving is not None and nearest.surviving < 0.03
    assert stochastic.surviving == pytest.approx(1, abs=0.1)
    spread = measure_update(off, grid, off + small, on_grid=False)
    assert spread.predicted is None
    assert measure_survival(spread, quantize(off + small, Rounding())).surviving == pytest.approx(1, abs=0.1)


def test_half_a_bin_by_definition() -> None:
    grid = nf4.quantize(drawn((2, 64), 1.0, 3), double_quant=False)
    update = measure_update(nf4.dequantize(grid), grid, nf4.dequantize(grid), on_grid=True)
    table, absmax = nf4.values().numpy(), nf4.block_absmax(grid).numpy()
    expected = [
        absmax[block]
        * min(abs(table[code] - table[other]) for other in (code - 1, code + 1) if 0 <= other < 16)
        / 2
        for block, codes in enumerate(nf4.block_codes(grid).int().tolist())
        for code in codes
    ]
    assert update.half_bin == pytest.approx(np.mean(expected), rel=1e-5)
    assert update.rms == 0 and update.predicted is None
    assert measure_survival(update, grid).surviving is None


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="weight by weight"):
        measure_update(torch.zeros(2, 64), nf4.quantize(torch.zeros(2, 64)), torch.zeros(1, 64), True)


def test_matrices_together_are_one_long_matrix() -> None:
    weights = [drawn((64, 64), 0.1, 0), drawn((32, 64), 0.1, 1)]
    moves = [drawn((64, 64), 0.01, 2), drawn((32, 64), 0.03, 3)]

    def survival(weight: torch.Tensor, move: torch.Tensor) -> Any:
        grid = nf4.quantize(weight, double_quant=False)
        trained = nf4.dequantize(grid) + move
        update = measure_update(nf4.dequantize(grid), grid, trained, True)
        return measure_survival(update, quantize(trained, Rounding(), grid=grid))

    apart = total([survival(w, m) for w, m in zip(weights, moves, strict=True)])
    together = survival(torch.cat(weights), torch.cat(moves))
    for name in ("weights", "codes_changed", "surviving", "update_rms", "update_max", "half_bin", "beyond"):
        assert getattr(apart, name) == pytest.approx(getattr(together, name), rel=1e-4), name


def test_bounds_of_adam() -> None:
    low, high = adam_rms_bounds([1e-3] * 100)
    assert (low, high) == (pytest.approx(1e-2), pytest.approx(1e-1))


def rows(differences: list[float], surviving: float) -> list[dict[str, Any]]:
    made = []
    for seed, difference in enumerate(differences):
        for rounding, value in (("nearest", 3.0 + difference), ("stochastic", 3.0)):
            made.append(
                {"seed": seed, "rounding": rounding, "log_perplexity": value, "surviving": surviving}
                | {
                    "start": "q_d",
                    "recipe": "KD",
                    "learning_rate": 1e-4,
                    "tokens": 9,
                    "steps": 10,
                    "predicted": 0.1,
                }
                | {"update_rms": 1e-3, "half_bin": 0.02}
                | {"nll": {f"c{item}": [10 * (value + item % 3 / 10), 10] for item in range(9)}}
            )
    return made


@pytest.mark.parametrize(
    ("differences", "surviving", "expected"),
    [
        ([0.30, 0.31, 0.32], 0.01, "not refuted: "),
        ([0.30, 0.31, 0.32], 0.60, "refuted, more than half"),
        ([-0.2, 0.1, 0.3], 0.01, "refuted, the interval includes zero"),
        ([0.30, 0.31], 0.01, "no verdict from 2 of 3 seeds"),
        ([-0.30, -0.31, -0.32], 0.01, "not refuted by the rule, but nearest is better"),
    ],
)
def test_the_verdict_is_by_the_rule(differences: list[float], surviving: float, expected: str) -> None:
    assert verdict(rows(differences, surviving)).startswith(expected)


def test_a_training_that_never_was_on_the_grid_is_a_control() -> None:
    cells = [row | {"predicted": None} for row in rows([-0.1, 0.1, 0.2], 1.0)]
    assert verdict(cells).startswith("control, never on the grid: ")


def test_the_interval_over_conversations_is_of_the_same_difference() -> None:
    cells = rows([0.30, 0.31, 0.32], 0.01)
    for row in cells:
        if row["rounding"] == "nearest":
            row["nll"] = {
                name: [nll + (2 if name == "c0" else 0), n] for name, (nll, n) in row["nll"].items()
            }
    low, high = item_interval(cells, "nearest", "stochastic")
    assert low < 0.31 + 2 / 90 < high
    assert low == pytest.approx(0.31, abs=0.01)


def test_an_interval_by_hand() -> None:
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low + high) / 2 == pytest.approx(2)
    assert (high - low) / 2 == pytest.approx(4.302653 * 1 / math.sqrt(3), rel=1e-5)


def test_the_paper_is_placed_by_its_steps() -> None:
    text = " ".join(placing_the_paper(rows([0.1, 0.2, 0.3], 0.1)))
    # Linear decay over n steps: the rates sum to half of n times the first, their squares to a third.
    assert f"{math.sqrt(5196 / 3) * 1e-4:.2g}" in text and f"{5196 / 2 * 1e-4:.2g}" in text
