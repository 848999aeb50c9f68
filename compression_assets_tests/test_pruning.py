"""P: importance against an independent formula, the cut against zeroed neurons, widths, and refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from compression_assets.errors import StudyError
from compression_assets.machine import precision
from compression_assets.store.reports import Report, StepReport, no_report
from compression_assets.techniques.pruning import Pruning
from compression_assets.techniques.pruning import width as pruning
from compression_assets.techniques.pruning.blocks import prune_ffn
from compression_assets.techniques.pruning.choice import most_important
from compression_assets.techniques.pruning.recipe import PruningRecipe, kept_units
from compression_assets.techniques.pruning.width import ffn_importance
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.training import resuming
from compression_assets.training.finetuning import FinetuneRecipe
from compression_assets.weights import checkpoints
from compression_assets_tests.tiny_models import tiny_directory, tiny_model

BIASED = {"mlp_bias": True, "attention_bias": True}


def dataset(seed: int, rows: int = 7) -> TokenDataset:
    """Rows of 5 to 40 random tokens, about half of them content; the first row is content from its first token."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(rows):
        length = int(rng.integers(5, 41))
        content = (rng.random(length) < 0.5).tolist()
        content[0] = content[0] or index == 0
        made.append(TokenRow(str(index), rng.integers(0, 256, length).tolist(), content))
    return TokenDataset(made)


def importance_by_formula(
    model: PreTrainedModel, data: TokenDataset, share: float, gate_alone: bool = False
) -> list[np.ndarray]:
    """s · w/max(w) + (1 - s) · a/max(a), one row at a time without padding, gate and up multiplied by hand.

    gate_alone: a is the mean |gate_proj(x)|, as in the authors' scripts.
    """
    sums = [np.zeros(model.config.intermediate_size) for _ in model.model.layers]
    for row in data:
        inputs: list[torch.Tensor] = []
        hooks = [
            layer.mlp.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0][0]))
            for layer in model.model.layers
        ]
        with torch.no_grad():
            model(torch.tensor([row.input_ids]))
        for hook in hooks:
            hook.remove()
        for index, (layer, x) in enumerate(zip(model.model.layers, inputs, strict=True)):
            mlp, hidden = layer.mlp, x[np.flatnonzero(row.content)].numpy()
            gate, up = (
                hidden @ linear.weight.detach().numpy().T
                + (0 if linear.bias is None else linear.bias.detach().numpy())
                for linear in (mlp.gate_proj, mlp.up_proj)
            )
            activation = gate if gate_alone else gate / (1 + np.exp(-gate)) * up
            sums[index] = sums[index] + np.abs(activation).sum(0)
    scores = []
    for layer, total in zip(model.model.layers, sums, strict=True):
        gate, up = (linear.weight.detach().numpy() for linear in (layer.mlp.gate_proj, layer.mlp.up_proj))
        weight, activation = (
            np.abs(gate).sum(1) + np.abs(up).sum(1),
            total / sum(sum(row.content) for row in data),
        )
        scores.append(share * weight / weight.max() + (1 - share) * activation / activation.max())
    return scores


@pytest.mark.parametrize(
    ("seed", "share", "settings"), [(0, 0.5, {}), (1, 0.2, BIASED), (2, 1.0, {}), (3, 0.0, {})]
)
def test_importance_is_the_formula(seed: int, share: float, settings: dict) -> None:
    model, data = tiny_model(seed=seed, **settings).double(), dataset(seed)
    recipe = PruningRecipe(weight_share=share, calibration_batch_size=3)
    for ours, theirs in zip(
        ffn_importance(model, data, recipe, "cpu"), importance_by_formula(model, data, share), strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, BIASED])
def test_importance_by_the_gates_output_is_its_own_formula(settings: dict) -> None:
    model, data = tiny_model(seed=4, **settings).double(), dataset(4)
    recipe = PruningRecipe(activation="gate_proj_output")
    expected = importance_by_formula(model, data, 0.5, gate_alone=True)
    for ours, theirs in zip(ffn_importance(model, data, recipe, "cpu"), expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5)


def test_batches_and_padding_do_not_matter() -> None:
    model, data = tiny_model("qwen2"), dataset(5, rows=16)
    scores = [
        torch.stack(ffn_importance(model, data, PruningRecipe(calibration_batch_size=size), "cpu"))
        for size in (1, 8)
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=0)


def test_template_tokens_do_not_matter() -> None:
    """Template comes last here, so that content cannot see it through attention."""
    model = tiny_model()
    content = TokenRow("0", [1, 2, 3], [True] * 3)
    longer = TokenRow("0", [1, 2, 3, 99, 100], [True] * 3 + [False] * 2)
    scores = [
        torch.stack(ffn_importance(model, TokenDataset([row]), PruningRecipe(), "cpu"))
        for row in (content, longer)
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("architecture", "settings"), [("llama", BIASED), ("qwen2", {})])
def test_a_pruned_model_is_the_original_with_neurons_at_zero(architecture: str, settings: dict) -> None:
    pruned, zeroed = (tiny_model(architecture, **settings).double() for _ in range(2))
    keep = [
        most_important(scores, 77) for scores in ffn_importance(pruned, dataset(1), PruningRecipe(), "cpu")
    ]
    prune_ffn(pruned, keep)
    for layer, kept in zip(zeroed.model.layers, keep, strict=True):
        removed = torch.ones(128, dtype=torch.bool)
        removed[kept] = False
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, args, removed=removed: (args[0].masked_fill(removed, 0.0),)
        )
    inputs = torch.arange(30).reshape(2, 15)
    torch.testing.assert_close(pruned(inputs).logits, zeroed(inputs).logits, rtol=1e-10, atol=1e-10)
    assert pruned.config.intermediate_size == 77
    assert pruned.model.layers[0].mlp.up_proj.out_features == 77


def test_the_best_are_kept_in_their_order() -> None:
    scores = torch.tensor([0.3, 0.9, 0.3, 0.1, 0.3, 0.8])
    assert most_important(scores, 4).tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("width", "ratio", "multiple_of", "kept"),
    [
        (11008, 0.30, 1, 7706),
        (11008, 0.30, 128, 7680),
        (1536, 0.30, 64, 1088),
        (1088, 0.30, 64, 768),
        (1536, 0.30, 1, 1076),
        (100, 0.29, 1, 71),  # 0.29 · 100 is 28.999… in binary floating point
        (160, 0.40, 64, 128),  # 96 lies between 64 and 128: ties up
        (128, 0.90, 64, 64),  # never below one multiple
        (8, 0.01, 1, None),
        (128, 0.10, 64, None),
        (64, 0.50, 128, None),
        (64, 0.0, 1, None),
        (64, 1.0, 1, None),
    ],
)
def test_kept_units(width: int, ratio: float, multiple_of: int, kept: int | None) -> None:
    if kept is None:
        with pytest.raises(StudyError):
            kept_units(width, ratio, multiple_of)
    else:
        assert kept_units(width, ratio, multiple_of) == kept


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan")])
def test_senseless_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(ValidationError):
        PruningRecipe(ratio=ratio)


def test_data_and_weights_without_importance_are_refused() -> None:
    model = tiny_model()
    silent = TokenDataset([TokenRow("0", [1, 2], [False, False])])
    with pytest.raises(StudyError, match="no content tokens"):
        ffn_importance(model, silent, PruningRecipe(), "cpu")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
    with pytest.raises(StudyError, match="activations of layer 1 are all zero"):
        ffn_importance(model, dataset(0), PruningRecipe(), "cpu")


def prune(
    parent: Path,
    output: Path,
    report: Report = no_report,
    scratch: Path | None = None,
    epochs: int = 1,
    **settings: float,
) -> StepReport:
    for name, seed in (("calibration_set", 1), ("finetuning_set", 2)):
        dataset(seed).save(output.parent / name)
    recipe = PruningRecipe(finetune=FinetuneRecipe(epochs=epochs, warmup_steps=1), **settings)
    data = {name: output.parent / name for name in Pruning.reads(recipe).data}
    return Pruning.apply(StepInputs(parent, output, recipe, data, seed=0, report=report, scratch=scratch))


def test_the_whole_step_twice_and_then_quantized(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base", intermediate_size=256)
    report = prune(base, tmp_path / "p", multiple_of=64)
    assert {check.name: check.passed for check in report.checks} == dict.fromkeys(Pruning.checks, True)
    assert report.tokens_seen == dataset(2).n_predicted
    json.dumps(report.metadata, allow_nan=False)
    for layer in report.metadata["layers"]:
        assert (layer["width_before"], layer["width_after"]) == (256, 192)
        assert 0 < layer["importance_removed"] < 0.25

    masters = load_file(tmp_path / "p" / "masters" / "model.safetensors")
    published = load_file(tmp_path / "p" / "model.safetensors")
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    assert any(not torch.equal(masters[name], published[name].float()) for name in masters)
    assert all(torch.equal(masters[name].bfloat16(), published[name]) for name in masters)

    again = prune(tmp_path / "p", tmp_path / "pp", multiple_of=64)
    assert again.metadata["intermediate_size"] == 128
    quantized = quantize_checkpoint(tmp_path / "pp", tmp_path / "ppq", QuantizationRecipe())
    assert all(check.passed for check in quantized.checks)
    with pytest.raises(StudyError, match="full precision is needed"):
        prune(tmp_path / "ppq", tmp_path / "x")


def test_a_step_in_bf16_does_not_depend_on_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[torch.Tensor] = []

    def recorded(*arguments: Any) -> list[torch.Tensor]:
        found = ffn_importance(*arguments)
        scores.append(torch.stack(found))
        return found

    monkeypatch.setattr(precision, "compute_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(pruning, "ffn_importance", recorded)
    base = tiny_directory(tmp_path / "base", num_hidden_layers=4)
    for size in (1, 7):
        prune(base, tmp_path / str(size), calibration_batch_size=size)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=0)


class Killed(Exception):
    pass


def test_a_killed_step_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "CHECKPOINT_EVERY", 2)
    base, scratch, reports = tiny_directory(tmp_path / "base"), tmp_path / "scratch", []

    def kill(done: int, total: int, note: str) -> None:
        reports.append(done)
        if len(reports) == 3:
            raise Killed

    prune(base, tmp_path / "undisturbed", epochs=4)
    with pytest.raises(Killed):
        prune(base, tmp_path / "killed", kill, scratch, epochs=4)
    # Another ratio leaves other weights to train: its checkpoints are not these.
    shutil.copytree(scratch, tmp_path / "copy")
    other = prune(base, tmp_path / "other", scratch=tmp_path / "copy", epochs=4, ratio=0.5)
    assert not any("resumed" in note for note in other.metadata["training_notes"])
    found = prune(base, tmp_path / "resumed", scratch=scratch, epochs=4)
    assert "resumed after step 2" in found.metadata["training_notes"]
    for file in ("model.safetensors", "masters/model.safetensors"):
        undisturbed, resumed = (tmp_path / name / file for name in ("undisturbed", "resumed"))
        assert undisturbed.read_bytes() == resumed.read_bytes()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    base = tiny_directory(tmp_path / "base")
    for name in ("a", "b"):
        prune(base, tmp_path / name)
    files = [
        checkpoints.weight_files(tmp_path / name / part)[0] for name in ("a", "b") for part in ("", "masters")
    ]
    contents = [file.read_bytes() for file in files]
    assert contents[:2] == contents[2:]
