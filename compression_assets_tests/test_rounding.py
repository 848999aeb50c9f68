"""Rounding to a fixed grid: its expectation against a closed form, neighbours, kept absmax, genuine checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compression_assets.errors import StudyError
from compression_assets.study.files import PRESETS, load_study
from compression_assets.study.orderings import last_quantized, parse_ordering
from compression_assets.techniques.dequantization.apply import dequantize_checkpoint
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.techniques.quantization.rounding import Rounding, quantize
from compression_assets.weights import checkpoints
from compression_assets.weights.first_answer import load_as_user
from compression_assets.weights.formats import nf4
from compression_assets.weights.formats.format import Stored
from compression_assets.weights.formats.nf4 import NF4
from compression_assets_tests.tiny_models import tiny_directory

# QLoRA's table (appendix E of the paper), written down independently of bitsandbytes.
NEGATIVE = (-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004)
POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
NF4_VALUES = np.array([*NEGATIVE, 0.0, *POSITIVE])
STOCHASTIC = QuantizationRecipe(rounding="stochastic")


def weight(seed: int = 0, rows: int = 32) -> torch.Tensor:
    return torch.randn(rows, 128, generator=torch.Generator().manual_seed(seed))


def codes(stored: Stored) -> np.ndarray:
    return nf4.block_codes(stored).numpy().astype(int)


def test_stochastic_rounding_is_right_on_average_and_between_neighbours() -> None:
    w = weight()
    drawn = [quantize(w, Rounding("stochastic", seed=f"{i}")) for i in range(400)]
    absmax = nf4.block_absmax(drawn[0]).double().numpy()[:, None]
    scaled = np.clip(w.double().numpy().reshape(-1, 64) / absmax, -1, 1)
    lower = np.clip(np.searchsorted(NF4_VALUES, scaled, side="right") - 1, 0, 14)
    up = np.stack([codes(stored) - lower for stored in drawn])
    assert set(np.unique(up)) == {0, 1}

    chance = (scaled - NF4_VALUES[lower]) / (NF4_VALUES[lower + 1] - NF4_VALUES[lower])
    # A mean of 400 draws is off by its binomial deviation: over 4,096 weights that has a mean square of 1.
    z = (up.mean(0) - chance) / np.sqrt(np.maximum(chance * (1 - chance), 1e-4) / 400)
    assert abs((z**2).mean() - 1) < 0.1
    assert abs(z.mean()) < 4 / np.sqrt(z.size)


def test_the_seed_and_the_name_decide() -> None:
    w = weight()
    first = quantize(w, Rounding("stochastic", seed="1"), "a")
    assert torch.equal(first[""], quantize(w, Rounding("stochastic", seed="1"), "a")[""])
    assert not torch.equal(first[""], quantize(w, Rounding("stochastic", seed="2"), "a")[""])
    assert not torch.equal(first[""], quantize(w, Rounding("stochastic", seed="1"), "b")[""])
    for part in first.keys() - {""}:
        assert torch.equal(first[part], nf4.quantize(w)[part]), part


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_grid_of_either_rounding_is_left_and_found_again(tmp_path: Path, rounding: str) -> None:
    """Drawn codes may leave a block without its largest value: its stored scale is still the grid's."""
    source = tiny_directory(tmp_path / "source", hidden_size=256, intermediate_size=512)
    quantize_checkpoint(source, tmp_path / "q", QuantizationRecipe(rounding=rounding), seed="0")
    checks = {check.name: check for check in dequantize_checkpoint(tmp_path / "q", tmp_path / "d").checks}
    assert checks["nf4_stable"].passed, checks["nf4_stable"].detail


def test_what_lies_beyond_the_stored_absmax_is_the_bias() -> None:
    w = weight()
    stored = quantize(w, Rounding("stochastic"))
    limit = nf4.block_absmax(stored).repeat_interleave(64).reshape(w.shape)
    cut = w - torch.maximum(torch.minimum(w, limit), -limit)
    share, bias = NF4().clipping(w, stored)
    assert share == pytest.approx((cut != 0).double().mean().item())
    assert 0 < share < 1 / 64
    assert bias == pytest.approx((cut.norm() / w.norm()).item(), rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 5), (1, 65), (4, 48)])
def test_blocks_that_are_not_full(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    stored = quantize(w, Rounding("stochastic"))
    assert nf4.unpack_codes(stored[""], w.numel()).numel() == w.numel()
    assert (nf4.dequantize(stored) - w).norm() < 0.2 * w.norm()


def test_a_block_of_zeros_stays_zero() -> None:
    w = torch.cat((torch.zeros(1, 64), torch.randn(1, 64)), 1)
    for kind in ("nearest", "stochastic"):
        stored = quantize(w, Rounding(kind, NF4(double_quant=False)))
        assert torch.equal(nf4.dequantize(stored)[0, :64], torch.zeros(64))


@pytest.mark.parametrize("kind", ["nearest", "stochastic"])
def test_a_kept_absmax_gives_back_every_weight_of_the_grid(kind: str) -> None:
    grid = nf4.quantize(weight())
    again = quantize(nf4.dequantize(grid), Rounding(kind), grid=grid)
    assert again.keys() == grid.keys()
    for part, tensor in grid.items():
        assert torch.equal(again[part], tensor), part


def test_a_checkpoint_of_stochastic_codes_is_like_any_other(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    report = quantize_checkpoint(base, tmp_path / "q", STOCHASTIC, seed="0 Q:stochastic")
    quantize_checkpoint(base, tmp_path / "same", STOCHASTIC, seed="0 Q:stochastic")
    quantize_checkpoint(base, tmp_path / "other", STOCHASTIC, seed="1 Q:stochastic")
    assert all(check.passed for check in report.checks)
    assert 0 < report.metadata["clipping_bias_mean"] < 0.01
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("q", "same", "other")]
    assert files[0] == files[1] != files[2]

    theirs = load_as_user(tmp_path / "q", "cpu").model.layers[0].mlp.up_proj.weight
    ours = dict(checkpoints.dense_tensors(tmp_path / "q"))["model.layers.0.mlp.up_proj.weight"]
    from bitsandbytes.functional import dequantize_4bit

    torch.testing.assert_close(
        dequantize_4bit(theirs.data, theirs.quant_state).float(), ours, rtol=1e-2, atol=0
    )


def test_a_checkpoint_keeps_the_absmax_of_the_one_before(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    recipe = QuantizationRecipe(keep_absmax=True)
    quantize_checkpoint(base, tmp_path / "q", QuantizationRecipe())
    dequantize_checkpoint(tmp_path / "q", tmp_path / "d")
    report = quantize_checkpoint(tmp_path / "d", tmp_path / "again", recipe, grid=tmp_path / "q")
    assert report.metadata["layers_with_kept_absmax"] == len(report.metadata["layers"])
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "q/model.safetensors"
    ).read_bytes()
    with pytest.raises(StudyError, match="there is no quantization before"):
        quantize_checkpoint(base, tmp_path / "none", recipe)


def test_a_study_names_the_variant_and_refuses_a_grid_that_is_not_there(tmp_path: Path) -> None:
    text = (PRESETS / "smoke.yaml").read_text().replace("name: smoke", "name: mine")
    text = text.replace(
        "  Q: {", "  Q:kept: {keep_absmax: true}\n  Q:stochastic: {rounding: stochastic}\n  Q: {"
    )
    for orderings, message in (("[Q-KD-Q:kept, Q-P-KD-Q:stochastic]", None), ("[KD-Q:kept]", "keep_absmax")):
        file = tmp_path / "mine.yaml"
        head, _, _ = text.partition("orderings:")
        file.write_text(f"{head}orderings: {orderings}\n")
        if message is None:
            study = load_study(file)
            assert study.recipe("Q:stochastic") == STOCHASTIC
            assert "q_p_kd_q_stochastic" in {ordering.key for ordering in study.parsed_orderings}
        else:
            with pytest.raises(StudyError, match=message):
                load_study(file)


def test_the_last_quantization_before_a_step() -> None:
    path = parse_ordering("Q-P-KD").path
    assert [last_quantized(path[:length]) for length in (1, 2, 5)] == [None, ("Q",), ("Q",)]
