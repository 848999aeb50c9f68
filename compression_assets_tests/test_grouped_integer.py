"""int4 and int8_grouped: what compressed-tensors and transformers read, decoded exactly; rows that do not fit."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig

from compression_assets.errors import StudyError
from compression_assets.planning.devices import device
from compression_assets.planning.fit import refuse_unfit
from compression_assets.planning.plan import make_plan
from compression_assets.study.files import PRESETS, load_study
from compression_assets.techniques.dequantization import Dequantization
from compression_assets.techniques.dequantization.apply import dequantize_checkpoint
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.weights import checkpoints, shapes
from compression_assets.weights.files import WEIGHTS, read_tensors
from compression_assets.weights.first_answer import load_as_user
from compression_assets.weights.formats.grouped_integer import GroupedInteger, Int4, Int8Grouped
from compression_assets.weights.formats.layout import format_of
from compression_assets.weights.formats.registry import formats_in
from compression_assets_tests.tiny_models import tiny_directory
from compression_assets_tests.training_helpers import tiny_dataset

KINDS = ["int4", "int8_grouped"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_the_weights_that_are_scored(tmp_path: Path, kind: str, tied: bool) -> None:
    parent = tiny_directory(tmp_path / "parent", "qwen2", tie_word_embeddings=tied)
    made = quantize_checkpoint(parent, tmp_path / "q", QuantizationRecipe(kind=kind, group_size=32))
    assert all(check.passed for check in made.checks), made.checks
    assert made.metadata["answers_on"] == ["cpu"] and "answer" in made.metadata
    low, high = {"int4": (0.08, 0.12), "int8_grouped": (0.003, 0.008)}[kind]
    assert low < made.metadata["relative_error_mean"] < high
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    assert shapes.file_bytes(config) == (tmp_path / "q" / WEIGHTS).stat().st_size

    scored = checkpoints.load_for_scoring(tmp_path / "q", "cpu", torch.bfloat16)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        theirs = load_as_user(tmp_path / "q", "cpu")(input_ids=ids).logits
        ours = scored(input_ids=ids).logits
    assert torch.equal(theirs, ours)

    back = dequantize_checkpoint(tmp_path / "q", tmp_path / "d")
    assert {check.name: check.passed for check in back.checks} == dict.fromkeys(Dequantization.checks, True)
    assert max(layer["difference"] for layer in back.metadata["layers"]) == 0


@pytest.mark.parametrize("form", [Int4(group_size=32), Int8Grouped(group_size=64)])
def test_codes_and_scales_by_the_formula(form: GroupedInteger) -> None:
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(form.bits))
    weight[2, :64] = 0
    stored = form.quantize(weight)
    lowest, size = 2 ** (form.bits - 1), form.group_size
    values = torch.empty(weight.shape, dtype=torch.int8)
    for row in range(6):
        for group in range(128 // size):
            numbers = weight[row, group * size : (group + 1) * size].tolist()
            scale = torch.tensor(max(numbers, key=abs) / -lowest).bfloat16().item()
            assert stored["_scale"][row, group].item() == scale
            for column, number in enumerate(numbers):
                value = min(max(round(number / scale), -lowest), lowest - 1) if scale else 0
                values[row, group * size + column] = value
                assert form.dequantize(stored)[row, group * size + column].item() == value * scale
    assert torch.equal(stored["_packed"], pack_to_int32(values, form.bits))
    assert stored["_shape"].tolist() == [6, 128]
    assert torch.equal(form.reference(stored), form.dequantize(stored))


def test_scales_fit_into_fp16_however_small() -> None:
    weight = (
        torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 10.0 ** -torch.arange(3, 7)[:, None]
    )
    scales = Int4().quantize(weight)["_scale"].float()
    assert torch.equal(scales.half().float(), scales) and (scales != 0).all()


@pytest.mark.parametrize("rounding", ["stochastic", "gptq"])
def test_it_is_rounded_to_in_every_way(tmp_path: Path, rounding: str) -> None:
    parent = tiny_directory(tmp_path / "parent")
    recipe = QuantizationRecipe(kind="int4", rounding=rounding)  # type: ignore[arg-type]
    made = quantize_checkpoint(parent, tmp_path / "q", recipe, seed="1", calibration=tiny_dataset())
    nearest = quantize_checkpoint(parent, tmp_path / "nearest", QuantizationRecipe(kind="int4"))
    assert all(check.passed for check in made.checks), made.checks
    assert made.metadata["relative_error_mean"] > nearest.metadata["relative_error_mean"]
    scales = [
        {name: tensor for name, tensor in read_tensors(tmp_path / one) if name.endswith("_scale")}
        for one in ("q", "nearest")
    ]
    assert len(scales[0]) == 14
    if rounding == "stochastic":
        assert all(torch.equal(tensor, scales[1][name]) for name, tensor in scales[0].items())
    else:
        assert made.metadata["output_error_mean"] < made.metadata["output_error_of_nearest_mean"]


def test_scales_are_kept_where_groups_are_the_same(tmp_path: Path) -> None:
    first = tiny_directory(tmp_path / "first")
    quantize_checkpoint(first, tmp_path / "grid", QuantizationRecipe(kind="int4", group_size=32))
    second = tiny_directory(tmp_path / "second", seed=1)
    kept = {}
    for size in (32, 64):
        recipe = QuantizationRecipe(kind="int4", group_size=size, keep_absmax=True)  # type: ignore[arg-type]
        made = quantize_checkpoint(second, tmp_path / f"q{size}", recipe, grid=tmp_path / "grid")
        kept[size] = made.metadata["layers_with_kept_absmax"]
    assert kept == {32: 14, 64: 0}


def test_the_config_says_what_compressed_tensors_means_by_it() -> None:
    form = Int4(group_size=128)
    theirs = QuantizationConfig(**form.to_config()).model_dump()
    assert formats_in(theirs) == formats_in(form.to_config()) == [form]
    group = form.to_config()["config_groups"]["group_0"]
    others = [
        {**group, "weights": {**group["weights"], "symmetric": False}},
        {**group, "weights": {**group["weights"], "actorder": "group"}},
        {**group, "weights": {**group["weights"], "strategy": "channel"}},
        {**group, "input_activations": {"num_bits": 8}},
        {**group, "targets": ["Linear", "Embedding"]},
    ]
    for other in others:
        with pytest.raises(
            StudyError, match=r"the quantization \(compressed-tensors\) .* no known number format"
        ):
            formats_in({**form.to_config(), "config_groups": {"group_0": other}})


def test_layers_that_a_checkpoint_ignores_are_in_full_precision(tmp_path: Path) -> None:
    form = Int4(ignored=("re:.*gate_proj", "model.layers.0.mlp.up_proj"))
    model = checkpoints.empty_model(checkpoints.read_config(tiny_directory(tmp_path)))
    left = [
        tensor.module
        for tensor in checkpoints.model_tensors(model)
        if tensor.linear and not form.covers(tensor)
    ]
    assert left == [
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.gate_proj",
    ]


def test_rows_that_groups_do_not_divide_are_refused_before_work(tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text()) | {"orderings": ["Q"]}
    study = tmp_path / "study.yaml"
    for size, fits in ((128, False), (64, True)):
        raw["techniques"]["Q"] = {"kind": "int4", "group_size": size}
        study.write_text(yaml.safe_dump(raw | {"name": "int4"}, sort_keys=False))
        if fits:
            assert make_plan(load_study(study), device("cpu"), tmp_path).row("final_q").size
            continue
        with pytest.raises(
            StudyError, match=r"int4 cannot store .*: 64 weights a row .*; use group_size 64 or 32"
        ):
            refuse_unfit(load_study(study), tmp_path)
    with pytest.raises(
        StudyError, match=r"\[4, 48\]: 48 weights a row are no multiple of group_size 64; no group"
    ):
        Int4().quantize(torch.randn(4, 48))


def test_group_size_is_for_groups_only() -> None:
    with pytest.raises(ValueError, match="group_size is for int4 and int8_grouped only, not for nf4"):
        QuantizationRecipe(group_size=64)


def test_a_written_directory_says_its_format(tmp_path: Path) -> None:
    quantize_checkpoint(
        tiny_directory(tmp_path / "p"), tmp_path / "q", QuantizationRecipe(kind="int4", group_size=32)
    )
    assert format_of(tmp_path / "q") == Int4(group_size=32)
