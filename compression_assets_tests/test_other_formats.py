"""FP4 and int8 beside NF4: written as bitsandbytes writes them, read back exactly, planned to the byte."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from compression_assets.techniques.dequantization.apply import dequantize_checkpoint
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.weights import checkpoints, shapes
from compression_assets.weights.files import WEIGHTS, read_tensors
from compression_assets.weights.formats.int8 import Int8
from compression_assets.weights.formats.layout import everywhere
from compression_assets.weights.formats.registry import make_format
from compression_assets_tests.tiny_models import tiny_directory


@pytest.mark.parametrize("kind", ["fp4", "int8"])
def test_a_model_in_another_format(tmp_path: Path, kind: str) -> None:
    parent = tiny_directory(tmp_path / "parent", "qwen2")
    made = quantize_checkpoint(parent, tmp_path / "q", QuantizationRecipe(kind=kind))  # type: ignore[arg-type]
    assert all(check.passed for check in made.checks), made.checks
    assert made.metadata["answers_on"] == ["cpu"]
    low, high = {"fp4": (0.08, 0.16), "int8": (0.001, 0.02)}[kind]
    assert low < made.metadata["relative_error_mean"] < high

    config = checkpoints.read_config(parent).to_dict()
    difference = (
        shapes.file_bytes(config, everywhere(make_format(kind))) - (tmp_path / "q" / WEIGHTS).stat().st_size
    )
    assert abs(difference) <= (16 * 14 if kind == "fp4" else 0)

    back = dequantize_checkpoint(tmp_path / "q", tmp_path / "d")
    assert all(check.passed for check in back.checks), back.checks
    again = quantize_checkpoint(tmp_path / "d", tmp_path / "again", QuantizationRecipe(kind=kind))  # type: ignore[arg-type]
    assert again.metadata["relative_error_max"] < 1e-2


def test_int8_is_what_bitsandbytes_makes(tmp_path: Path) -> None:
    parent = tiny_directory(tmp_path / "parent")
    quantize_checkpoint(parent, tmp_path / "ours", QuantizationRecipe(kind="int8"))
    theirs = AutoModelForCausalLM.from_pretrained(
        parent,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=torch.bfloat16,
        device_map="cpu",
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours, saved = (dict(read_tensors(tmp_path / name)) for name in ("ours", "theirs"))
    assert ours.keys() == saved.keys()
    for name, tensor in saved.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        # bitsandbytes rounds from float16, so that a code may differ by one step.
        assert (ours[name].float() - tensor.float()).abs().max() <= (
            1 if tensor.dtype == torch.int8 else 1e-3
        )


def test_int8_codes_by_the_formula() -> None:
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    stored = Int8().quantize(weight)
    for row in range(5):
        largest = max(abs(value) for value in weight[row].tolist())
        expected = [round(value / largest * 127) if largest else 0 for value in weight[row].tolist()]
        assert stored[""][row].tolist() == expected
    assert torch.allclose(Int8().dequantize(stored), weight, atol=weight.abs().max().item() / 254 * 1.01)


def test_what_is_for_nf4_only_is_refused() -> None:
    with pytest.raises(ValueError, match="for nf4, int4 and int8_grouped only, not for int8"):
        QuantizationRecipe(kind="int8", rounding="stochastic")
