"""What survives quantization: the closed form against simulated updates, sums over matrices, verdicts."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.survival import (
    Rounded,
    item_interval,
    main,
    placing_the_paper,
    predict_for_grid,
    t_interval,
    verdict,
)
from compression_assets.evaluation.survival import measure_survival, measure_update, total
from compression_assets.techniques.quantization.rounding import Rounding, quantize
from compression_assets.weights.formats import nf4
from compression_assets_tests.project import Project


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
    assert predict_for_grid([grid], update.rms) == pytest.approx(update.predicted)


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


def rows(differences: list[float], surviving: float, on_grid: bool = True) -> list[Rounded]:
    """Nearest and stochastic models of seeds 0, 1, …, whose log-perplexities differ by so much."""
    return [
        Rounded(
            setting="Q-D-KD",
            rounding=rounding,
            seed=seed,
            nll={f"c{item}": (10 * (value + item % 3 / 10), 10) for item in range(9)},
            on_grid=on_grid,
            surviving=surviving,
            predicted=0.1 if on_grid else None,
            codes_changed=0.0,
            update_rms=1e-3,
            half_bin=0.02,
            learning_rate=1e-4,
            steps=10,
        )
        for seed, difference in enumerate(differences)
        for rounding, value in (("nearest", 3.0 + difference), ("stochastic", 3.0))
    ]


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
    cells = rows([-0.1, 0.1, 0.2], 1.0, on_grid=False)
    assert verdict(cells).startswith("control, never on the grid: ")


def test_the_interval_over_conversations_is_of_the_same_difference() -> None:
    cells = [
        replace(row, nll=row.nll | {"c0": (row.nll["c0"][0] + 2, 10)}) if row.rounding == "nearest" else row
        for row in rows([0.30, 0.31, 0.32], 0.01)
    ]
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
    short = rows([0.1], 0.1)
    long = [replace(row, steps=40, update_rms=2e-3) for row in short]
    text = " ".join(placing_the_paper([*short, *long]))
    assert "growth as steps^0.50" in text and f"{1e-3 * (5196 / 10) ** 0.5:.2g}" in text


@pytest.mark.timeout(400)
def test_the_verdict_on_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds and roundings of one study share their trainings; the benchmark reads what the study has measured."""
    project = Project(
        tmp_path,
        seeds=[0, 1, 2],
        orderings=["Q-KD", "Q-KD-Q:stochastic"],
        evaluation={"perplexity": {"batch_size": 8}, "diagnostics": {}},
    )
    study = project.read()
    study["techniques"]["Q:stochastic"] = {"rounding": "stochastic"}
    project.write(study)
    code, output = project.compression("run")
    assert code == 0, output
    trained = {f"q_d_kd{seed}" for seed in ("", "_s1", "_s2")}
    assert trained <= set(project.versions()) and len(project.versions()) == 3 * 5 + 2
    monkeypatch.setenv("COMPRESSION_STORAGE", str(project.storage))
    monkeypatch.setenv("COMPRESSION_STUDY", "smoke")
    monkeypatch.setattr(sys, "argv", ["survival", "--study", str(project.study_file), "--apart", "16"])
    main()
    output = capsys.readouterr().out
    assert re.search(r"^Q-D-KD +nearest +3 ", output, re.MULTILINE)
    assert re.search(r"^Q-D-KD: not refuted: nearest - stochastic \+.* over 3 seeds", output, re.MULTILINE)
    beside = re.findall(r"^q_d_kd\S* +16 +([\d.]+) +(0\.\d+) +([\d.]+)$", output, re.MULTILINE)
    assert len(beside) == 3
    config = json.loads((project.root / "models/q_d/config.json").read_text())
    for perplexity, surviving, mebibytes in beside:
        # A rank of 16 holds part of an update of full rank, in two bytes a number beside codes that stay.
        assert float(perplexity) > 1 and 0.2 < float(surviving) < 1
        assert float(mebibytes) == pytest.approx(bytes_of_factors(config, rank=16) / 2**20, abs=1e-3)


def bytes_of_factors(config: dict[str, Any], rank: int) -> int:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, values = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    a_layer = 2 * (hidden + queries) + 2 * (hidden + values) + 3 * (hidden + inner)
    return 2 * rank * a_layer * config["num_hidden_layers"]
