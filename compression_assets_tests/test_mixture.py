"""Q with a format for each layer: the choice against brute force, and the checkpoint in transformers and GGUF."""

import itertools
import json
from pathlib import Path

import gguf
import pytest
import torch
import yaml
from pydantic import ValidationError

from compression_assets.errors import StudyError
from compression_assets.planning.devices import device
from compression_assets.planning.plan import make_plan
from compression_assets.study.files import PRESETS, load_study
from compression_assets.takeaway.gguf_file import write_gguf
from compression_assets.techniques.dequantization.apply import dequantize_checkpoint
from compression_assets.techniques.qad.stored_form import StoredForm
from compression_assets.techniques.quantization import mixture
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.techniques.quantization.refusal import refusal
from compression_assets.techniques.quantization.sensitivity import Divergence, sensitivities, stored_as
from compression_assets.weights import checkpoints, shapes
from compression_assets.weights.files import WEIGHTS
from compression_assets.weights.first_answer import load_as_user
from compression_assets.weights.formats.format import Format, ModelTensor
from compression_assets.weights.formats.gguf_types import GgufForm
from compression_assets.weights.formats.grouped_integer import Int4, Int8Grouped
from compression_assets.weights.formats.layout import layout_in, layout_of
from compression_assets.weights.formats.registry import formats_in
from compression_assets_tests.test_gguf_types import model as model_for_gguf
from compression_assets_tests.test_gguf_types import types
from compression_assets_tests.tiny_models import tiny_directory, tiny_model
from compression_assets_tests.training_helpers import tiny_dataset

RECIPE = QuantizationRecipe(kind="mixed", bits=7.0, group_size=32, sensitivity_tokens=40)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_that_of_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    widths = (32 * torch.randint(1, 9, (5,), generator=generator)).tolist()
    model = [
        ModelTensor(f"model.layers.{n}.mlp.down_proj.weight", (64, width), "linear")
        for n, width in enumerate(widths)
    ]
    bits = 5.0 + 6.0 * torch.rand(1, generator=generator).item()
    choice = mixture.options(model, RECIPE.model_copy(update={"bits": bits}))
    loss = {
        unit.name: {form: torch.rand(1, generator=generator).item() for form in unit.sizes}
        for unit in choice.units
    }
    allowed = []
    for forms in itertools.product(RECIPE.candidates, repeat=5):
        size = sum(form.stored_bytes(tensor.shape) for form, tensor in zip(forms, model, strict=True))
        if size <= bits * sum(tensor.size for tensor in model) / 8:
            allowed.append(sum(loss[unit.name][form] for unit, form in zip(choice.units, forms, strict=True)))
    found = mixture.best(choice, loss)
    assert sum(loss[unit][form] for unit, form in found.items()) == pytest.approx(min(allowed), rel=1e-3)
    assert choice.bits(found) <= bits and choice.bits(mixture.filled(choice)) <= bits
    assert len(allowed) < 3**5


@pytest.mark.parametrize("under", [1, 10, 50])
def test_the_budget_is_kept_to_the_byte(under: int) -> None:
    """A solver takes a limit that is exceeded by a millionth for kept."""
    model = [ModelTensor(f"model.layers.{n}.mlp.down_proj.weight", (1024, 4096), "linear") for n in range(20)]
    units = mixture.options(model, RECIPE).units
    small, middle, _ = sorted(units[0].sizes.values())
    choice = mixture.Options(units, 10 * small + 10 * middle - under)
    loss = {
        unit.name: {form: 0.0 if form.full_precision else 1.0 / size for form, size in unit.sizes.items()}
        for unit in units
    }
    found = mixture.best(choice, loss)
    assert sum(unit.sizes[found[unit.name]] for unit in units) <= choice.budget


def test_sensitivity_is_the_divergence_with_one_unit_quantized() -> None:
    model, other, rows = tiny_model(), tiny_model(), list(tiny_dataset())[:3]
    choice = mixture.options(checkpoints.model_tensors(model), RECIPE)
    assert [unit.name.removesuffix("_proj") for unit in choice.units[:4]] == [
        *(f"model.layers.0.self_attn.{one}" for one in ("q_proj+k_proj+v", "o")),
        *(f"model.layers.0.mlp.{one}" for one in ("gate_proj+up", "down")),
    ]
    found = sensitivities(model, Divergence(model, rows), choice)
    unit = choice.units[2]
    for weight in unit.weights:
        parameter = other.get_parameter(weight.name)
        parameter.data.copy_(Int4(group_size=32).dequantize(Int4(group_size=32).quantize(parameter.data)))
    total = tokens = 0.0
    with torch.no_grad():
        for row in rows:
            before, after = (
                one(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
                for one in (model, other)
            )
            for place in range(1, len(row.input_ids)):
                if row.content[place]:
                    total += (before[place - 1].exp() * (before[place - 1] - after[place - 1])).sum().item()
                    tokens += 1
    assert found[unit.name][Int4(group_size=32)] == pytest.approx(total / tokens, rel=1e-3)
    for own in found.values():
        four, eight, whole = (own[form] for form in RECIPE.candidates)
        assert four > 20 * eight > 0 == whole
    untouched = tiny_model()
    assert all(torch.equal(p, untouched.get_parameter(name)) for name, p in model.named_parameters())


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_transformers_loads_the_mixture_that_is_scored(tmp_path: Path, rounding: str) -> None:
    parent = tiny_directory(tmp_path / "parent", "qwen2")
    recipe = RECIPE.model_copy(update={"rounding": rounding})
    made = quantize_checkpoint(parent, tmp_path / "q", recipe, calibration=tiny_dataset())
    assert all(check.passed for check in made.checks), made.checks
    assert made.metadata["answers_on"] == ["cpu"]
    assert 6.0 < made.metadata["bits_a_weight"] <= 7.0
    assert made.metadata["kl_predicted"] == pytest.approx(made.metadata["kl_measured"], rel=0.5)
    formats = {layer["layer"]: layer["format"] for layer in made.metadata["layers"]}
    assert {"int4", "int8_grouped"} <= set(formats.values())
    assert len(formats) + len(made.metadata["layers_in_full_precision"]) == 14
    layout = layout_of(tmp_path / "q")
    for tensor in checkpoints.model_tensors(checkpoints.empty_model(checkpoints.read_config(parent))):
        assert layout(tensor).name == formats.get(tensor.module, "bf16")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert shapes.file_bytes(config) == (tmp_path / "q" / WEIGHTS).stat().st_size

    scored = checkpoints.load_for_scoring(tmp_path / "q", "cpu", torch.bfloat16)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        theirs = load_as_user(tmp_path / "q", "cpu")(input_ids=ids).logits
        assert torch.equal(theirs, scored(input_ids=ids).logits)

    back = dequantize_checkpoint(tmp_path / "q", tmp_path / "d")
    assert all(check.passed for check in back.checks), back.checks
    weights = {weight.name: weight for weight in checkpoints.quantized_weights(tmp_path / "q")}
    for scales in ("kept", "fitted"):
        stored = StoredForm(weights, scales, device="cpu")
        for name, weight in weights.items():
            assert torch.equal(stored(name, weight.dequantized()), weight.dequantized()), (name, scales)


@pytest.mark.parametrize(("bits", "formats"), [(7.0, ("int4", "int8_grouped")), (9.0, ("int4", "bf16"))])
def test_gguf_has_each_weight_in_the_type_of_its_codes(
    tmp_path: Path, bits: float, formats: tuple[str, str]
) -> None:
    recipe = RECIPE.model_copy(update={"bits": bits, "formats": formats})
    made = quantize_checkpoint(
        model_for_gguf(tmp_path / "m"), tmp_path / "q", recipe, calibration=tiny_dataset()
    )
    own = {layer["layer"]: layer["format"] for layer in made.metadata["layers"]}
    assert {*own.values(), "bf16"} == {*formats, "bf16"}
    write_gguf(tmp_path / "q", tmp_path / "q.gguf", "tiny", "a test", GgufForm("q4_0"))
    found = types(tmp_path / "q.gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    by_format = {"int4": "Q4_0", "int8_grouped": "Q8_0", "bf16": "Q8_0"}
    for layer in [*own, *made.metadata["layers_in_full_precision"]]:
        assert found[f"{names.get_name(layer)}.weight"] == by_format[own.get(layer, "bf16")]
    assert bool(made.metadata["layers_in_full_precision"]) == ("bf16" in formats)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    dense = dict(checkpoints.dense_tensors(tmp_path / "q"))
    for layer in (name for name in own if ".mlp." in name):
        tensor, weight = tensors[f"{names.get_name(layer)}.weight"], dense[f"{layer}.weight"]
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(values.reshape(weight.shape), weight)


def test_the_plan_follows_the_budget(tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "demo.yaml").read_text())
    sizes = {}
    for name, budget in (("bits", {"bits": 5.0}), ("mib", {"max_mib": 120})):
        raw |= {"name": name, "orderings": ["Q:mixed"]}
        raw["techniques"]["Q:mixed"] = {"kind": "mixed", **budget}
        raw["evaluation"].pop("serving", None)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(raw))
        study = load_study(tmp_path / f"{name}.yaml")
        assert "calibration_set" in study.inputs_of("Q:mixed")
        plan = make_plan(study, device("a6000"), tmp_path)
        sizes[name] = plan.row("final_q_mixed").size / 2**20
        assert plan.row("final_q_mixed").flops > 0
    linear, others = 106_168_320, 2 * (134_515_008 - 106_168_320)
    assert sizes["bits"] == pytest.approx((linear * 5 / 8 + others) / 2**20, rel=0.01)
    assert sizes["mib"] == pytest.approx(120, rel=0.01)


def test_budgets_that_cannot_be_kept_are_refused() -> None:
    config = tiny_model().config.to_dict()
    said = refusal(config, RECIPE.model_copy(update={"bits": 4.1}))
    assert said and "bits: 4.1 is 4.10 bits a linear weight" in said and "mixed from 4.5" in said
    assert refusal(config, RECIPE.model_copy(update={"bits": None, "max_mib": 0.01}))
    assert refusal(config, RECIPE.model_copy(update={"bits": 16.0}))
    assert refusal(config, RECIPE) is None
    narrow = refusal(
        config, RECIPE.model_copy(update={"group_size": 128, "formats": ("int4", "int8_grouped")})
    )
    assert narrow and narrow.startswith(
        "none of the formats can store model.layers.0.self_attn.q_proj+k_proj+v_proj"
    )
    for settings in (
        {"kind": "mixed"},
        {"kind": "mixed", "bits": 5, "max_mib": 5},
        {"kind": "int4", "bits": 5},
        {"kind": "mixed", "bits": 5, "formats": ["int4"]},
        {"kind": "mixed", "bits": 5, "keep_absmax": True},
    ):
        with pytest.raises(ValidationError):
            QuantizationRecipe(**settings)  # type: ignore[arg-type]
    assert "bits" not in QuantizationRecipe().model_dump()


def test_a_mixture_needs_calibration(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"kind: mixed needs a calibration set"):
        quantize_checkpoint(tiny_directory(tmp_path / "p"), tmp_path / "q", RECIPE)


def test_groups_of_a_config_are_read_or_refused() -> None:
    forms = {"a.b": Int4(), "a.c": Int8Grouped(group_size=32), "a.d": None}
    config = mixture.mixture_config(forms)
    tensors = [ModelTensor(f"{name}.weight", (8, 64), "linear") for name in forms]
    layout = layout_in({"quantization_config": config})
    assert [layout(tensor).name for tensor in tensors] == ["int4", "int8_grouped", "bf16"]
    assert [layout(tensor).stored_bytes((8, 64)) for tensor in tensors] == [288, 560, 1024]
    group = config["config_groups"]["group_0"]
    for other in (
        {**group, "targets": ["Linear"]},
        {**group, "weights": {**group["weights"], "num_bits": 8}},
    ):
        with pytest.raises(StudyError, match="no known number format"):
            formats_in({**config, "config_groups": {**config["config_groups"], "group_0": other}})


def test_one_layer_at_a_time_is_restored_after_an_error() -> None:
    model, weight = tiny_model(), "model.layers.0.mlp.up_proj.weight"
    before = model.get_parameter(weight).detach().clone()
    forms: dict[str, Format] = {weight: Int4(group_size=32)}

    def fail() -> None:
        with stored_as(model, forms):
            assert not torch.equal(model.get_parameter(weight), before)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(model.get_parameter(weight), before)
