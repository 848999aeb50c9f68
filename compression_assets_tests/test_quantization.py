"""Q and D: the file against transformers' own, codes and values against NF4's definition, and refusals."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.functional import QuantState, get_4bit_type
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from compression_assets.errors import StudyError
from compression_assets.store.reports import StepReport
from compression_assets.techniques.dequantization import Dequantization
from compression_assets.techniques.dequantization.apply import compare_with_grid, dequantize_checkpoint
from compression_assets.techniques.dequantization.recipe import DequantizationRecipe
from compression_assets.techniques.quantization import Quantization
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.techniques.step import StepInputs
from compression_assets.weights import checkpoints, first_answer
from compression_assets.weights.first_answer import generate_answer, load_as_user
from compression_assets.weights.formats import nf4
from compression_assets.weights.formats.nf4 import NF4
from compression_assets_tests.tiny_models import tiny_directory, tiny_model

RECIPE = QuantizationRecipe()
QWEN = {"architecture": "qwen2", "tie_word_embeddings": False}
INPUT = torch.arange(24).reshape(2, 12)
LOAD_AND_GENERATE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, loading = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(loading.values()), loading
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(model.generate(**ids, max_new_tokens=5, min_new_tokens=5).shape[1] - ids["input_ids"].shape[1])
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_directory(tmp_path / "base")


@pytest.fixture
def quantized(base: Path, tmp_path: Path) -> Path:
    quantize_checkpoint(base, tmp_path / "q", RECIPE)
    return tmp_path / "q"


def nf4_by_definition(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest code [n] and absmax [n / 64], fp64: QLoRA's definition."""
    table = get_4bit_type("nf4", device="cpu").numpy().astype(np.float64)
    blocks = weight.astype(np.float64).reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    return np.abs((blocks / absmax[:, None])[..., None] - table).argmin(-1).reshape(-1), absmax


def nibbles(packed: torch.Tensor) -> np.ndarray:
    flat = packed.numpy().reshape(-1)
    return np.stack((flat >> 4, flat & 15), 1).reshape(-1)


def passed(report: StepReport) -> dict[str, bool]:
    return {check.name: check.passed for check in report.checks}


@pytest.mark.parametrize("settings", [{}, QWEN, {"mlp_bias": True, "attention_bias": True}])
@pytest.mark.parametrize("double_quant", [True, False])
def test_the_file_is_the_one_that_transformers_writes(
    tmp_path: Path, settings: dict, double_quant: bool
) -> None:
    base = tiny_directory(tmp_path / "base", **settings)
    theirs = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    theirs.save_pretrained(tmp_path / "theirs")
    report = quantize_checkpoint(
        base, tmp_path / "ours", RECIPE.model_copy(update={"double_quant": double_quant})
    )

    expected, actual = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours")]
    assert configs[0] == configs[1]
    assert passed(report) == dict.fromkeys(Quantization.checks, True)


def test_codes_and_values_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 192)
    stored = nf4.quantize(weight)
    codes, absmax = nf4_by_definition(weight.numpy())
    # bitsandbytes scales in fp32 and compares with midpoints: a weight within rounding of a midpoint may differ.
    assert (nibbles(stored[""]) == codes).mean() > 0.9999

    stored_absmax = nf4.block_absmax(stored).numpy()
    # 8 bits a block: a share of the largest deviation from the mean, half a step of bitsandbytes' 8-bit table.
    assert np.abs(stored_absmax - absmax).max() < 0.02 * np.abs(absmax - absmax.mean()).max()
    table = get_4bit_type("nf4", device="cpu").numpy()
    values = (table[nibbles(stored[""])].reshape(-1, 64) * stored_absmax[:, None]).reshape(96, 192)
    np.testing.assert_allclose(nf4.dequantize(stored).numpy(), values, rtol=1e-6)
    np.testing.assert_allclose(nf4.dequantize_by_kernel(stored).numpy(), values, rtol=1e-6)
    relative = np.linalg.norm(values - weight.numpy()) / np.linalg.norm(weight.numpy())
    assert 0.08 < relative < 0.10


# 48, 80 and 96: multiples of 16 but not of 64, where bitsandbytes' own row-wise call is wrong on AVX-512.
@pytest.mark.parametrize("shape", [(3, 5), (7, 64), (1, 65), (5, 30), (4, 48), (6, 80), (64, 96)])
def test_shapes_that_do_not_fill_blocks(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    weight = torch.randn(shape)
    stored = nf4.quantize(weight)
    assert nf4.dequantize(stored).shape == weight.shape
    assert (nf4.dequantize(stored) - weight).norm() < 0.13 * weight.norm()
    torch.testing.assert_close(nf4.dequantize(stored), nf4.dequantize_by_kernel(stored), rtol=1e-6, atol=0)
    sizes = [
        tensor.numel() * tensor.element_size()
        for name, tensor in stored.items()
        if nf4.DESCRIPTION not in name
    ]
    assert sum(sizes) == NF4().stored_bytes(weight.shape)
    codes = nf4.unpack_codes(stored[""], weight.numel())
    assert torch.equal(nf4.pack_codes(codes), stored[""])


def test_codes_come_from_the_masters(base: Path, tmp_path: Path) -> None:
    model = tiny_model(seed=1)
    checkpoints.save_full_precision(model, tmp_path / "trained", tokenizer_from=base, masters=True)
    report = quantize_checkpoint(tmp_path / "trained", tmp_path / "q", RECIPE)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = model.state_dict()[name]
    written = load_file(tmp_path / "q" / "model.safetensors")
    assert torch.equal(written[name], nf4.quantize(weight)[""])
    assert not torch.equal(written[name], nf4.quantize(weight.bfloat16())[""])
    assert json.loads(bytes(written[f"{name}{nf4.DESCRIPTION}nf4"].numpy()))["dtype"] == "bfloat16"
    assert written["model.embed_tokens.weight"].dtype == torch.bfloat16

    layer = next(
        layer for layer in report.metadata["layers"] if layer["layer"] == name.removesuffix(".weight")
    )
    error = (nf4.dequantize(nf4.quantize(weight)) - weight).norm() / weight.norm()
    assert layer["relative_error"] == pytest.approx(error.item(), rel=1e-6)
    json.dumps(report.metadata, allow_nan=False)


@pytest.mark.parametrize("settings", [{}, QWEN])
def test_the_loaded_model_computes_what_its_stored_weights_say(tmp_path: Path, settings: dict) -> None:
    base = tiny_directory(tmp_path / "base", **settings)
    report = quantize_checkpoint(base, tmp_path / "q", RECIPE)
    assert report.metadata["answers_on"] == ["cpu"]
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    with torch.no_grad():
        dense = checkpoints.load_for_scoring(tmp_path / "q", "cpu", torch.float32)(INPUT).logits
        logits = packed(INPUT).logits.float()
        original = checkpoints.load_for_scoring(base, "cpu", torch.float32)(INPUT).logits
    # bf16 arithmetic, and absmax in bf16 in the CPU's kernel, against fp32
    assert (logits - dense).norm() < 0.03 * dense.norm()
    assert (original - dense).norm() > 0.05 * dense.norm()


def test_scoring_is_exact_even_after_a_forward_pass_elsewhere(quantized: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(quantized)(INPUT)
    dequantize_checkpoint(quantized, tmp_path / "d")
    scored = checkpoints.load_for_scoring(quantized, "cpu", torch.float32).state_dict()
    masters = checkpoints.load_full_precision(tmp_path / "d").state_dict()
    assert all(torch.equal(scored[name], masters[name]) for name in masters)
    half = checkpoints.load_for_scoring(quantized, "cpu", torch.bfloat16)
    published = checkpoints.load_for_scoring(tmp_path / "d", "cpu", torch.bfloat16)
    assert torch.equal(half(INPUT).logits, published(INPUT).logits)


def test_dequantization_is_exact_stable_and_ordinary(base: Path, quantized: Path, tmp_path: Path) -> None:
    step = StepInputs(quantized, tmp_path / "d", DequantizationRecipe(), {}, seed=0)
    report = Dequantization.apply(step)
    assert passed(report) == dict.fromkeys(Dequantization.checks, True)
    assert len(report.metadata["layers"]) == 14
    json.dumps(report.metadata, allow_nan=False)
    assert not checkpoints.is_quantized(tmp_path / "d")
    assert json.loads((tmp_path / "d" / "config.json").read_text()) == json.loads(
        (base / "config.json").read_text()
    )
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "d").dtype == torch.bfloat16

    stored = load_file(quantized / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    masters = load_file(tmp_path / "d" / "masters" / "model.safetensors")
    parts = {
        key.removeprefix(f"{name}."): tensor for key, tensor in stored.items() if key.startswith(f"{name}.")
    }
    state = QuantState.from_dict(parts, device=torch.device("cpu"))
    absmax = state.state2.code[state.absmax.int()] * state.state2.absmax[0] + state.offset
    by_hand = state.code[torch.from_numpy(nibbles(stored[name])).int()].reshape(-1, 64) * absmax[:, None]
    assert torch.equal(masters[name], by_hand.reshape(32, 64))

    quantize_checkpoint(tmp_path / "d", tmp_path / "q2", RECIPE)
    again = load_file(tmp_path / "q2" / "model.safetensors")
    assert all(torch.equal(again[key], stored[key]) for key in stored if key.endswith("proj.weight"))


def test_moved_weights_are_not_stable(quantized: Path, tmp_path: Path) -> None:
    dequantize_checkpoint(quantized, tmp_path / "d")
    file = tmp_path / "d" / "masters" / "model.safetensors"
    masters = load_file(file)
    name = "model.layers.0.mlp.gate_proj.weight"
    masters[name] = masters[name] + 0.02 * torch.randn(masters[name].shape)
    save_file(masters, file)
    layers = {layer["layer"]: layer for layer in compare_with_grid(quantized, tmp_path / "d")}
    moved = layers.pop(name.removesuffix(".weight"))
    assert moved["codes_equal"] < 1
    assert moved["difference"] > 0.1
    assert {layer["codes_equal"] for layer in layers.values()} == {1.0}


def test_blocks_without_a_scale_are_counted_not_called_unstable(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        weight = model.model.layers[0].mlp.up_proj.weight
        weight[:64] *= 1e-9
        model.model.layers[1].self_attn.q_proj.weight.zero_()
    base = tiny_directory(tmp_path / "other")
    checkpoints.save_full_precision(model, tmp_path / "base", tokenizer_from=base, masters=True)
    first = quantize_checkpoint(tmp_path / "base", tmp_path / "q", RECIPE)
    report = dequantize_checkpoint(tmp_path / "q", tmp_path / "d")
    assert passed(first)["weights_finite"]
    assert passed(report)["nf4_stable"]
    assert sum(layer["weights_without_scale"] for layer in report.metadata["layers"]) >= 64
    json.dumps([first.metadata, report.metadata], allow_nan=False)


def test_a_fresh_process_loads_it_and_answers(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base", intermediate_size=192)
    quantize_checkpoint(base, tmp_path / "q", RECIPE)
    command = [sys.executable, "-c", LOAD_AND_GENERATE, str(tmp_path / "q")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "5", run.stderr


@pytest.mark.parametrize("width", [96, 90])
def test_shapes_that_the_cpu_cannot_run_are_named(tmp_path: Path, width: int) -> None:
    base = tiny_directory(tmp_path / "base", intermediate_size=width)
    report = quantize_checkpoint(base, tmp_path / "q", RECIPE)
    assert passed(report) == dict.fromkeys(Quantization.checks, True)
    assert report.metadata["answers_on"] == ["cuda"]
    assert f"{width} " in report.metadata["answers_on_reason"]
    assert passed(dequantize_checkpoint(tmp_path / "q", tmp_path / "d")) == dict.fromkeys(
        Dequantization.checks, True
    )


def test_a_model_that_does_not_answer_is_an_error(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("N must be divisible by block_n")

    monkeypatch.setattr(first_answer, "generate_answer", refuse)
    with pytest.raises(AssertionError, match="block_n"):
        quantize_checkpoint(base, tmp_path / "q", RECIPE)


def test_the_first_answer_depends_on_no_chat_template(quantized: Path) -> None:
    """Such a template may write today's date, have another name than `default`, or refuse a message."""
    model, file = load_as_user(quantized, "cpu"), quantized / "chat_template.jinja"
    before = generate_answer(model, quantized, 4)
    file.write_text("{{ strftime_now('%d %b %Y') }}{{ raise_exception('no') }}")
    assert generate_answer(model, quantized, 4) == before


def test_logits_that_are_not_finite_are_an_error(base: Path, quantized: Path) -> None:
    tensors = load_file(quantized / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, quantized / "model.safetensors", {"format": "pt"})
    with pytest.raises(StudyError, match="logits that are not finite"):
        generate_answer(load_as_user(quantized, "cpu"), quantized, 2)
    assert not checkpoints.check_finite(quantized).passed


def test_the_same_model_gives_the_same_bytes(base: Path, quantized: Path, tmp_path: Path) -> None:
    step = StepInputs(base, tmp_path / "again", RECIPE, {}, seed=7)
    Quantization.apply(step)
    digests = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}
        for directory in (quantized, tmp_path / "again")
    ]
    assert digests[0] == digests[1]
    assert {file.stat().st_mode & 0o777 for file in quantized.iterdir()} == {0o644}


def test_refusals(base: Path, quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="full precision is needed"):
        quantize_checkpoint(quantized, tmp_path / "x", RECIPE)
    with pytest.raises(StudyError, match="full precision is needed"):
        checkpoints.load_full_precision(quantized)
    with pytest.raises(StudyError, match="is not quantized"):
        dequantize_checkpoint(base, tmp_path / "x")

    tensors = load_file(quantized / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight.nested_absmax"
    save_file(
        {key: tensor for key, tensor in tensors.items() if key != name}, quantized / "model.safetensors"
    )
    with pytest.raises(StudyError, match=r"lacks \.nested_absmax"):
        dequantize_checkpoint(quantized, tmp_path / "x")

    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(StudyError, match="is not finite"):
        quantize_checkpoint(base, tmp_path / "y", RECIPE)
