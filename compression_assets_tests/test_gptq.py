"""Rounding by layer output: against a direct form of the algorithm, its closed forms, its inputs, its checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compression_assets.errors import StudyError
from compression_assets.graph.assets.models import step_artifact
from compression_assets.study.files import PRESETS, load_study
from compression_assets.techniques.quantization import Quantization, gptq
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.calibrated import quantize_by_layers
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.techniques.quantization.rounding import Rounding, quantize
from compression_assets.techniques.step import StepInputs
from compression_assets.weights import checkpoints
from compression_assets.weights.first_answer import load_as_user
from compression_assets.weights.formats import nf4
from compression_assets.weights.formats.format import Stored
from compression_assets.weights.formats.nf4 import NF4
from compression_assets.weights.layers import linear_layers
from compression_assets_tests.tiny_models import tiny_directory, tiny_model
from compression_assets_tests.training_helpers import tiny_dataset

RECIPE = QuantizationRecipe(rounding="gptq")


def weight_and_inputs(
    seed: int, shape: tuple[int, int], samples: int = 400
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and inputs [in, samples] that hang together, as those of a layer do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[1], shape[1], generator=generator)
    inputs = mixing @ torch.randn(shape[1], samples, generator=generator)
    return torch.randn(shape, generator=generator), inputs


def direct_form(weight: np.ndarray, absmax: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """GPTQ in float64 without factorisation: after each column the inverse loses it by Gaussian elimination."""
    table = nf4.values().double().numpy()
    weight = weight.copy()
    damped = moment + 0.01 * np.diag(moment).mean() * np.eye(len(moment))
    inverse, codes = np.linalg.inv(damped), np.zeros(weight.shape, dtype=int)
    for column in np.argsort(-np.diag(moment), kind="stable"):
        scaled = np.clip(weight[:, column] / absmax[:, column], -1, 1)
        codes[:, column] = np.abs(scaled[:, None] - table).argmin(1)
        error = weight[:, column] - table[codes[:, column]] * absmax[:, column]
        weight -= np.outer(error / inverse[column, column], inverse[column])
        inverse = inverse - np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes


@pytest.mark.parametrize("shape", [(8, 64), (16, 192), (5, 30)])
def test_it_is_the_algorithm_in_its_direct_form(shape: tuple[int, int]) -> None:
    weight, inputs = weight_and_inputs(len(shape) + shape[1], shape)
    moment = inputs @ inputs.T
    grid = nf4.quantize(weight)
    stored = gptq.quantize(weight, NF4(), grid, moment)
    absmax = nf4.block_absmax(grid).repeat_interleave(64)[: weight.numel()].reshape(shape)
    expected = direct_form(weight.double().numpy(), absmax.double().numpy(), moment.double().numpy())
    found = nf4.unpack_codes(stored[""], weight.numel()).reshape(shape).numpy()
    # In float32 a weight at a midpoint may fall the other way, and those after it in its row with it.
    assert (found == expected).all(axis=1).mean() >= 0.8
    assert all(torch.equal(stored[part], grid[part]) for part in grid.keys() - {""})


def test_inputs_that_do_not_hang_together_leave_the_nearest_values() -> None:
    weight, _ = weight_and_inputs(3, (16, 128))
    grid = nf4.quantize(weight)
    stored = gptq.quantize(weight, NF4(), grid, torch.diag(torch.rand(128) + 0.1))
    nearest = quantize(weight, Rounding("nearest"), grid=grid)
    assert torch.equal(stored[""], nearest[""])


@pytest.mark.parametrize("seed", range(3))
def test_outputs_change_less_than_by_nearest_rounding(seed: int) -> None:
    weight, inputs = weight_and_inputs(seed, (32, 128))
    grid, moment = nf4.quantize(weight), inputs @ inputs.T
    errors = {}
    for name, stored in (("gptq", gptq.quantize(weight, NF4(), grid, moment)), ("nearest", grid)):
        direct = ((weight - nf4.dequantize(stored)) @ inputs).norm() / (weight @ inputs).norm()
        errors[name] = gptq.output_error(weight, nf4.dequantize(stored), moment)
        assert errors[name] == pytest.approx(direct.item(), rel=1e-3)
    assert errors["gptq"] < 0.7 * errors["nearest"]


def test_inputs_that_are_never_there_leave_the_nearest_values() -> None:
    weight, inputs = weight_and_inputs(1, (32, 128))
    inputs[5] = 0
    grid = nf4.quantize(weight)
    nearest = nf4.unpack_codes(quantize(weight, Rounding("nearest"), grid=grid)[""], weight.numel())
    for moment, columns in ((inputs @ inputs.T, [5]), (torch.zeros(128, 128), list(range(128)))):
        codes = nf4.unpack_codes(gptq.quantize(weight, NF4(), grid, moment)[""], weight.numel())
        assert torch.equal(codes.reshape(32, 128)[:, columns], nearest.reshape(32, 128)[:, columns])
        assert torch.equal(codes, nearest) == (len(columns) == 128)


def test_a_block_of_zeros_stays_finite() -> None:
    weight, inputs = weight_and_inputs(1, (4, 128))
    weight[0, :64] = 0
    stored = gptq.quantize(weight, NF4(), nf4.quantize(weight, double_quant=False), inputs @ inputs.T)
    assert nf4.dequantize(stored).isfinite().all()
    assert gptq.output_error(weight, nf4.dequantize(stored), inputs @ inputs.T) < 0.2


def test_every_layer_sees_what_the_quantized_ones_before_it_make() -> None:
    model, data = tiny_model(), tiny_dataset()
    reference, moments = tiny_model(), {}

    def nearest(name: str, weight: torch.Tensor, moment: torch.Tensor) -> Stored:
        moments[name] = moment.clone()
        return nf4.quantize(weight)

    forms = dict.fromkeys((f"{name}.weight" for name in linear_layers(model)), NF4())
    stored = dict(quantize_by_layers(model, data, forms, nearest))
    assert stored.keys() == {f"{name}.weight" for name in linear_layers(reference)}
    for name, parts in stored.items():
        if ".layers.0." in name:
            reference.get_parameter(name).data.copy_(nf4.dequantize(parts))
        assert torch.equal(model.get_parameter(name), nf4.dequantize(parts))

    seen: list[torch.Tensor] = []
    last = reference.model.layers[1].self_attn.k_proj
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].reshape(-1, 64)))
    with torch.no_grad():
        for row in data:
            reference(input_ids=torch.tensor([row.input_ids]))
    hook.remove()
    inputs = torch.cat(seen)
    torch.testing.assert_close(
        moments["model.layers.1.self_attn.k_proj.weight"], inputs.T @ inputs, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_checkpoint_of_such_codes_is_like_any_other(tmp_path: Path, architecture: str) -> None:
    base = tiny_directory(tmp_path / "base", architecture)
    report = quantize_checkpoint(base, tmp_path / "q", RECIPE, calibration=tiny_dataset(40, longest=60))
    assert all(check.passed for check in report.checks)
    assert report.metadata["output_error_mean"] < report.metadata["output_error_of_nearest_mean"]
    quantize_checkpoint(base, tmp_path / "same", RECIPE, calibration=tiny_dataset(40, longest=60))
    quantize_checkpoint(base, tmp_path / "nearest", QuantizationRecipe())
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("q", "same", "nearest")]
    assert files[0] == files[1] != files[2]
    assert len(files[0]) == len(files[2])

    loaded = load_as_user(tmp_path / "q", "cpu")
    theirs = loaded.model.layers[0].mlp.up_proj.weight
    from bitsandbytes.functional import dequantize_4bit

    ours = dict(checkpoints.dense_tensors(tmp_path / "q"))["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(
        dequantize_4bit(theirs.data, theirs.quant_state).float(), ours, rtol=1e-2, atol=0
    )


def test_refusals(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    with pytest.raises(StudyError, match="needs a calibration set"):
        quantize_checkpoint(base, tmp_path / "q", RECIPE)
    with pytest.raises(StudyError, match="calibration set is empty"):
        quantize_checkpoint(base, tmp_path / "q", RECIPE, calibration=tiny_dataset(0))
    with pytest.raises(ValueError, match="nf4, int4 and int8_grouped only"):
        QuantizationRecipe(kind="int8", rounding="gptq")


def test_a_study_reads_the_calibration_set_for_it(tmp_path: Path) -> None:
    text = (PRESETS / "smoke.yaml").read_text().replace("name: smoke", "name: mine")
    head, _, tail = text.partition("\norderings:")
    evaluation = tail[tail.index("\nevaluation:") :] if "\nevaluation:" in tail else ""
    text = head.replace("techniques:\n", 'techniques:\n  "Q:gptq": {rounding: gptq}\n', 1)
    (tmp_path / "mine.yaml").write_text(f"{text}\norderings: [Q, 'KD-Q:gptq']\n{evaluation}")
    study = load_study(tmp_path / "mine.yaml")
    assert study.inputs_of("Q") == () and study.inputs_of("Q:gptq") == ("calibration_set",)
    assert "calibration_set" in study.inputs
    nodes = {node.key: node for node in study.nodes.values()}
    assert "calibration_set" in step_artifact(study, nodes["kd_q_gptq"], nodes["kd"]).inputs


def test_the_technique_hands_the_calibration_set_on(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    data = tiny_dataset(20, longest=40)
    data.save(tmp_path / "calibration")
    step = StepInputs(
        base, tmp_path / "q", RECIPE, {"calibration_set": tmp_path / "calibration"}, seed=0, path=("Q:gptq",)
    )
    assert all(check.passed for check in Quantization.apply(step).checks)
    quantize_checkpoint(base, tmp_path / "same", RECIPE, calibration=data)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("q", "same")]
    assert files[0] == files[1]
