"""Number formats on a GPU: codes against the CPU's, stored parts against the libraries' kernels, models that run."""

from pathlib import Path

import pytest
import torch

from compression_assets.evaluation.four_bit import compare_with_four_bit
from compression_assets.techniques.dequantization.apply import dequantize_checkpoint
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.weights.checkpoints import load_for_scoring
from compression_assets.weights.files import read_tensors
from compression_assets.weights.formats.format import Format, Stored
from compression_assets.weights.formats.grid import GridFormat
from compression_assets.weights.formats.registry import make_format
from compression_assets_tests.tiny_models import tiny_directory

KINDS = ("nf4", "fp4", "int8", "int4", "int8_grouped")
OF_COMPRESSED_TENSORS = ("int4", "int8_grouped")


def form_of(kind: str) -> Format:
    if kind in OF_COMPRESSED_TENSORS:
        pytest.importorskip("compressed_tensors")
    return make_format(kind)


def moved(stored: Stored, device: str) -> Stored:
    return {part: tensor.to(device) for part, tensor in stored.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_the_cpu(device: str, kind: str, dtype: torch.dtype) -> None:
    form = form_of(kind)
    weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    here, there = form.quantize(weight), form.quantize(weight.to(device))
    assert here.keys() == there.keys()
    assert all(tensor.device.type == "cpu" for tensor in there.values())
    exact, one, other = weight.float(), form.dequantize(here), form.dequantize(there)
    # Sums in another order move scales of scales by a step, and a weight in the middle of two codes may take either:
    # of weights in bfloat16 quite a few are. What is written is as near to the weight, wherever it was made.
    assert (exact - other).norm() == pytest.approx(float((exact - one).norm()), rel=1e-3)
    assert ((exact - other).abs() - (exact - one).abs()).abs().max() <= 0.01 * exact.abs().max()
    assert (one - other).norm() <= 0.03 * one.norm()
    if isinstance(form, GridFormat):
        assert (form.codes(here) == form.codes(there)).double().mean() > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_stored_parts_mean_the_same_on_the_gpu_and_to_its_kernels(device: str, kind: str) -> None:
    form = form_of(kind)
    stored = form.quantize(torch.randn(64, 256, generator=torch.Generator().manual_seed(2)))
    meant = form.dequantize(stored)
    # CUDA divides by a number as it multiplies by its inverse: the last bit of a scale may be another.
    torch.testing.assert_close(form.dequantize(moved(stored, device)).cpu(), meant, rtol=3e-7, atol=0)
    kernel = form.reference(moved(stored, device)).float().cpu()
    assert (kernel - meant).norm() <= 1e-5 * meant.norm()


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8", "int4"])
def test_a_quantized_model_runs_and_agrees_with_its_dequantized_weights(
    tmp_path: Path, device: str, kind: str
) -> None:
    form_of(kind)
    source = tiny_directory(tmp_path / "source", "qwen2")
    report = quantize_checkpoint(source, tmp_path / "q", QuantizationRecipe(kind=kind), device)
    assert report.metadata["answers_on"] == ["cuda"] and report.metadata["answer"]
    assert all(check.passed for check in report.checks)
    model = load_for_scoring(tmp_path / "q", device, torch.bfloat16)
    prompts = [[5, 9, 200, 31, 77, 12] * 8, list(range(40))]
    assert compare_with_four_bit(model, tmp_path / "q", prompts, device).check().passed


def test_a_checkpoint_has_the_bytes_of_the_cpu_and_comes_back_exactly(tmp_path: Path, device: str) -> None:
    source = tiny_directory(tmp_path / "source")
    reports = {}
    for place in ("cpu", device):
        target = tmp_path / place.replace(":", "")
        reports[place] = quantize_checkpoint(source, target, QuantizationRecipe(), place)
    here, there = (dict(read_tensors(tmp_path / name)) for name in ("cpu", device.replace(":", "")))
    assert here.keys() == there.keys()
    for name in here:
        if "quant_state" in name:  # a printed float, whose last digits may differ
            continue
        if here[name].is_floating_point():
            assert torch.allclose(here[name], there[name], rtol=1e-4), name
        else:
            assert (here[name] == there[name]).double().mean() > 0.99, name
    means = [report.metadata["relative_error_mean"] for report in reports.values()]
    assert means[0] == pytest.approx(means[1], rel=1e-3)
    done = dequantize_checkpoint(tmp_path / device.replace(":", ""), tmp_path / "d")
    assert all(check.passed for check in done.checks)


def test_gptq_is_as_good_as_on_the_cpu(tmp_path: Path, device: str) -> None:
    source = tiny_directory(tmp_path / "source")
    made = torch.randint(0, 256, (12, 48), generator=torch.Generator().manual_seed(3)).tolist()
    rows = TokenDataset([TokenRow(str(n), ids, [True] * len(ids)) for n, ids in enumerate(made)])
    recipe = QuantizationRecipe(rounding="gptq")
    found = [
        quantize_checkpoint(source, tmp_path / place[:4], recipe, place, calibration=rows)
        for place in ("cpu", device)
    ]
    assert all(check.passed for report in found for check in report.checks)
    errors = [report.metadata["output_error_mean"] for report in found]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
    assert errors[1] < found[1].metadata["output_error_of_nearest_mean"]


def test_stochastic_rounding_draws_the_same_numbers_everywhere(tmp_path: Path, device: str) -> None:
    source = tiny_directory(tmp_path / "source")
    recipe = QuantizationRecipe(kind="nf4", rounding="stochastic")
    for place in ("cpu", device):
        quantize_checkpoint(source, tmp_path / place[:4], recipe, place, seed="7")
    here, there = (dict(read_tensors(tmp_path / name)) for name in ("cpu", "cuda"))
    same = [(here[name] == there[name]).double().mean() for name in here if name.endswith("proj.weight")]
    assert same and min(same) > 0.98
