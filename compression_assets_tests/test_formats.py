"""Number formats: one of another package, several in one checkpoint, and what the registry refuses."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from compression_assets.errors import StudyError
from compression_assets.evaluation.four_bit import compare_with_four_bit
from compression_assets.planning.devices import device
from compression_assets.planning.plan import make_plan
from compression_assets.study.files import PRESETS, load_study
from compression_assets.techniques.dequantization import Dequantization
from compression_assets.techniques.dequantization.apply import dequantize_checkpoint
from compression_assets.techniques.quantization import Quantization
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.weights import checkpoints, shapes
from compression_assets.weights.files import WEIGHTS, write_weights
from compression_assets.weights.first_answer import cannot_run
from compression_assets.weights.formats import registry
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.formats.int8 import Int8
from compression_assets.weights.formats.layout import format_of, layout_of
from compression_assets.weights.formats.nf4 import NF4
from compression_assets_tests.tiny_models import tiny_directory
from compression_assets_tests.training_helpers import tiny_dataset

TERNARY = '''
"""Weights -1.5, 0 or 1.5 times the mean magnitude of their row: four codes a byte."""

from dataclasses import dataclass
from typing import ClassVar

from compression_assets.weights.formats.format import Part
from compression_assets.weights.formats.grid import GridFormat


@dataclass(frozen=True)
class Ternary(GridFormat):
    name: ClassVar[str] = "ternary"
    title: ClassVar[str] = "ternary"
    max_relative_error: ClassVar[float] = 0.7
    outer: float = 1.5

    def parts(self, shape):
        rows, columns = shape
        return {
            "_packed": Part("U8", (rows, -(-columns // 4))),
            "_scale": Part("F32", (rows,)),
            "_shape": Part("I64", (2,)),
        }

    def quantize(self, weight):
        import torch

        scale = weight.float().abs().mean(1)
        parts = {"_scale": scale.cpu(), "_shape": torch.tensor(weight.shape)}
        return self.with_codes(parts, self.nearest(self.scaled(weight, parts)))

    def with_codes(self, stored, codes):
        import torch

        four = torch.nn.functional.pad(codes.cpu().int(), (0, -codes.shape[1] % 4)).reshape(len(codes), -1, 4)
        return {**stored, "_packed": (four << torch.tensor([0, 2, 4, 6])).sum(2).to(torch.uint8)}

    def codes(self, stored):
        import torch

        codes = (stored["_packed"].int()[..., None] >> torch.tensor([0, 2, 4, 6])) & 3
        return codes.flatten(1)[:, : stored["_shape"][1]].to(torch.uint8)

    def scales(self, stored):
        return stored["_scale"][:, None].expand(*stored["_shape"])

    def blocks(self, weight):
        return weight

    def with_scales(self, stored, scales):
        return {**stored, "_scale": scales.cpu()}

    def levels(self, device="cpu"):
        import torch

        return torch.tensor([-self.outer, 0.0, self.outer], device=device)

    def dequantize(self, stored):
        return self.levels()[self.codes(stored).int()] * self.scales(stored)

    def to_config(self):
        return {"quant_method": "ternary", "outer": self.outer}

    @classmethod
    def from_config(cls, quantization):
        return cls(quantization["outer"]) if quantization.get("quant_method") == "ternary" else None
'''


def install(folder: Path, name: str, formats: dict[str, str]) -> None:
    """A package as pip leaves it: its module and the metadata that names its formats."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / f"{name}.py").write_text(TERNARY)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    entries = "".join(f"{entry} = {value}\n" for entry, value in formats.items())
    (about / "entry_points.txt").write_text(f"[compression_assets.formats]\n{entries}")


@pytest.fixture
def ternary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(tmp_path / "site", "ternary_format", {"ternary": "ternary_format:Ternary"})
    monkeypatch.syspath_prepend(tmp_path / "site")
    registry.registered.cache_clear()
    yield
    registry.registered.cache_clear()
    sys.modules.pop("ternary_format", None)


@pytest.mark.usefixtures("ternary")
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_format_of_another_package_goes_all_the_way(tmp_path: Path, architecture: str) -> None:
    parent = tiny_directory(tmp_path / "parent", architecture, intermediate_size=90)
    made = quantize_checkpoint(parent, tmp_path / "q", QuantizationRecipe(kind="ternary"))
    assert {check.name: check.passed for check in made.checks} == dict.fromkeys(Quantization.checks, True)
    assert made.metadata["answers_on"] == []
    assert "transformers does not run ternary on this CPU" in made.metadata["answers_on_reason"]
    assert 0.3 < made.metadata["relative_error_mean"] < 0.7
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert shapes.file_bytes(config) == (tmp_path / "q" / WEIGHTS).stat().st_size

    scored = checkpoints.load_for_scoring(tmp_path / "q", "cpu", torch.float32)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = load_file(parent / WEIGHTS)[name].float()
    mean = weight.abs().mean(1, keepdim=True)
    expected = torch.where(weight.abs() > 0.75 * mean, 1.5 * weight.sign(), 0) * mean
    assert torch.equal(scored.state_dict()[name], expected)
    agreement = compare_with_four_bit(scored, tmp_path / "q", [[1, 2, 3]], "cpu")
    assert agreement.logit_cosine is None and "does not run ternary" in agreement.reason

    back = dequantize_checkpoint(tmp_path / "q", tmp_path / "d")
    assert {check.name: check.passed for check in back.checks} == dict.fromkeys(Dequantization.checks, True)
    assert not checkpoints.is_quantized(tmp_path / "d")
    restored = checkpoints.load_full_precision(tmp_path / "d").state_dict()
    assert all(torch.equal(restored[key], tensor) for key, tensor in scored.state_dict().items())


@pytest.mark.usefixtures("ternary")
@pytest.mark.parametrize("rounding", ["stochastic", "gptq"])
def test_it_is_rounded_to_in_every_way(tmp_path: Path, rounding: str) -> None:
    parent = tiny_directory(tmp_path / "parent")
    recipe = QuantizationRecipe(kind="ternary", rounding=rounding)  # type: ignore[arg-type]
    made = quantize_checkpoint(parent, tmp_path / "q", recipe, seed="1", calibration=tiny_dataset())
    assert all(check.passed for check in made.checks), made.checks
    nearest = quantize_checkpoint(parent, tmp_path / "nearest", QuantizationRecipe(kind="ternary")).metadata
    assert made.metadata["relative_error_mean"] > nearest["relative_error_mean"]
    if rounding == "gptq":
        assert made.metadata["output_error_mean"] < 0.95 * made.metadata["output_error_of_nearest_mean"]
        return
    # Drawn codes are right on average: unlike nearest ones they do not shrink small weights to 0.
    name = "model.layers.0.mlp.up_proj.weight"
    weight = load_file(parent / WEIGHTS)[name].float()
    drawn, rounded = (dict(checkpoints.dense_tensors(tmp_path / one))[name] for one in ("q", "nearest"))
    inside = weight.abs() < 0.5 * weight.abs().mean(1, keepdim=True)
    assert (rounded[inside] == 0).all()
    assert (drawn * weight)[inside].sum() / weight[inside].square().sum() == pytest.approx(1, abs=0.15)


@pytest.mark.usefixtures("ternary")
def test_a_study_with_it_is_planned(tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text()) | {"orderings": ["Q", "Q-KD"]}
    sizes = {}
    for kind in ("ternary", "int8"):
        raw["techniques"]["Q"] = {"kind": kind}
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(raw | {"name": kind}, sort_keys=False))
        plan = make_plan(load_study(tmp_path / f"{kind}.yaml"), device("cpu"), tmp_path)
        sizes[kind] = plan.row("final_q").size
        assert plan.row("final_q").memory
    assert sizes["ternary"] < sizes["int8"]


@pytest.mark.usefixtures("ternary")
def test_one_name_for_two_formats_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "other", "another_format", {"nf4": "another_format:Ternary"})
    monkeypatch.syspath_prepend(tmp_path / "other")
    registry.registered.cache_clear()
    with pytest.raises(StudyError, match=r"'nf4' is brought by both .*nf4:NF4 and another_format:Ternary"):
        registry.format_class("int8")


def test_each_layer_may_have_a_format_of_its_own(tmp_path: Path) -> None:
    """As a search over layers would leave it: NF4, one layer in int8, one in full precision."""
    parent = tiny_directory(tmp_path / "parent")
    exceptions = {
        "model.layers.0.mlp.down_proj": Int8().to_config(),
        "model.layers.1.self_attn.q_proj": BF16().to_config(),
    }
    config = json.loads((parent / "config.json").read_text())
    config["quantization_config"] = {**NF4().to_config(), "layers": exceptions}
    mixed = tmp_path / "mixed"
    checkpoints.copy_tokenizer(parent, mixed)
    (mixed / "config.json").write_text(json.dumps(config))

    model = checkpoints.empty_model(checkpoints.read_config(parent))
    layout = layout_of(mixed)
    formats = {tensor.name: layout(tensor) for tensor in checkpoints.model_tensors(model)}
    assert [type(form) for form in formats.values()].count(NF4) == 12
    weights = load_file(parent / WEIGHTS)
    file, expected = {}, {}
    for name, form in formats.items():
        parts = form.quantize(weights[name])
        file |= {form.tensor_name(name, part): tensor for part, tensor in parts.items()}
        expected[name] = form.dequantize(parts)
    write_weights(file, mixed)

    assert format_of(mixed) == NF4()
    assert checkpoints.check_size(mixed).passed
    assert {name: type(formats[name]) for name in ("model.embed_tokens.weight", "model.norm.weight")} == {
        "model.embed_tokens.weight": BF16,
        "model.norm.weight": BF16,
    }
    assert all(torch.equal(found.float(), expected[name]) for name, found in checkpoints.dense_tensors(mixed))
    assert abs(shapes.file_bytes(config) - (mixed / WEIGHTS).stat().st_size) <= 16 * 12
    assert "does not run a mixture of number formats on this CPU" in cannot_run(mixed, model, "cpu")
    back = dequantize_checkpoint(mixed, tmp_path / "d")
    assert all(check.passed for check in back.checks), back.checks
    assert len(back.metadata["layers"]) == 13


def test_layers_that_bitsandbytes_skips_are_in_full_precision(tmp_path: Path) -> None:
    parent = tiny_directory(tmp_path / "parent")
    skipped = ["lm_head", "layers.0.mlp.down_proj", "model.layers.1.self_attn"]
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=skipped,
        bnb_4bit_use_double_quant=True,
    )
    theirs = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.bfloat16, quantization_config=settings)
    theirs.save_pretrained(tmp_path / "q")
    checkpoints.copy_tokenizer(parent, tmp_path / "q")
    assert format_of(tmp_path / "q") == NF4(skipped=tuple(skipped), compute_dtype="float32")
    assert checkpoints.check_size(tmp_path / "q").passed
    quantized = {weight.name for weight in checkpoints.quantized_weights(tmp_path / "q")}
    assert len(quantized) == 14 - 1 - 4
    found, original = dict(checkpoints.dense_tensors(tmp_path / "q")), load_file(parent / WEIGHTS)
    assert all(torch.equal(found[name], original[name]) == (name not in quantized) for name in original)


def test_a_part_that_is_not_what_its_format_stores_is_named(tmp_path: Path) -> None:
    quantize_checkpoint(tiny_directory(tmp_path / "parent"), tmp_path / "q", QuantizationRecipe())
    tensors = load_file(tmp_path / "q" / WEIGHTS)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()
    write_weights(tensors, tmp_path / "q")
    with pytest.raises(
        StudyError, match=r"up_proj.weight in .* but NF4 by its config.json stores U8 \[4096, 1\]"
    ):
        checkpoints.check_finite(tmp_path / "q")


def test_a_quantization_that_no_format_knows_is_named(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        StudyError, match=r"quantization \(gptq\) in config.json is in no known number format"
    ):
        dequantize_checkpoint(directory, tmp_path / "d")


@pytest.mark.parametrize("name", list(registry.FORMATS))
def test_config_and_parts_of_a_format_agree_with_what_it_writes(name: str) -> None:
    form = registry.make_format(name)
    assert type(form).from_config(form.to_config()) == form
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    stored, parts = form.quantize(weight), form.parts((64, 128))
    assert stored.keys() == parts.keys()
    names = {"U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64}
    names |= {"F32": torch.float32, "BF16": torch.bfloat16}
    for part, described in parts.items():
        assert stored[part].dtype == names[described.dtype], part
        assert described.text or tuple(stored[part].shape) == described.shape, part
    restored = form.dequantize(stored)
    assert (restored - weight).norm() / weight.norm() < form.max_relative_error
    torch.testing.assert_close(form.reference(stored), restored, rtol=1e-6, atol=0)
    assert form.kept_codes(restored, stored) == (1.0, 0)
    assert torch.equal(form.round_trip(weight), restored)
