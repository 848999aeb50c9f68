"""Distillation on the quantized model: what is written, gradients that pass rounding, going on after a kill."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compression_assets.errors import StudyError
from compression_assets.store.reports import StepReport
from compression_assets.techniques.prediction import StepContext
from compression_assets.techniques.qad import QuantizationAwareDistillation as QAD
from compression_assets.techniques.qad import apply as qad_apply
from compression_assets.techniques.qad.recipe import QADRecipe
from compression_assets.techniques.qad.stored_form import StoredForm, within_bins
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.techniques.registry import technique
from compression_assets.techniques.step import StepInputs
from compression_assets.training import loop, resuming
from compression_assets.training.teacher.teacher_forward import LiveTeacher, load_teacher
from compression_assets.training.teacher.teacher_logits import TeacherLogitsRecipe, write_teacher_logits
from compression_assets.weights import checkpoints
from compression_assets.weights.formats import nf4
from compression_assets.weights.formats.grid import FITS, GridFormat
from compression_assets.weights.stored import StoredWeight
from compression_assets_tests.project import Project
from compression_assets_tests.training_helpers import (
    VOCABULARY,
    Killed,
    save_model,
    tiny_dataset,
    tiny_model,
)

KINDS = [("nf4", "kept"), ("nf4", "fitted"), ("nf4", "new"), ("int8", "fitted")]


@pytest.fixture(autouse=True)
def no_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer of one token an id has no words to ask the quantized model with."""
    monkeypatch.setattr(
        "compression_assets.techniques.quantization.apply.answer_or_reason", lambda *_: {"answers_on": []}
    )


def recipe(**changes: Any) -> QADRecipe:
    plain = {
        "epochs": 2,
        "learning_rate": 2e-2,
        "warmup_steps": 0,
        "batch_size": 3,
        "gradient_accumulation": 2,
    }
    return QADRecipe(**(plain | changes))


def quantized(root: Path, kind: str = "nf4") -> Path:
    """A model, what Q makes of it, a teacher, and its answers on the distillation set."""
    model = save_model(tiny_model("qwen2"), root / "full")
    quantize_checkpoint(model, root / "q", QuantizationRecipe(kind=kind))
    teacher = save_model(tiny_model("qwen2", seed=4), root / "teacher")
    tiny_dataset(11).save(root / "data")
    write_teacher_logits(
        teacher,
        root / "data",
        root / "logits",
        TeacherLogitsRecipe(coding="hidden", rows_per_shard=4),
        temperature=1.0,
        teacher_fingerprint="t",
        vocabulary=VOCABULARY,
    )
    return root / "q"


def qad(root: Path, output: str = "qad", **changes: Any) -> StepReport:
    data = {"distillation_set": root / "data", "teacher_logits": root / "logits"}
    inputs = {"parent": root / "q", "output": root / output, "recipe": recipe(), "data": data, "seed": 0}
    return QAD.apply(StepInputs(**(inputs | changes)))


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "scales"), KINDS)
def test_what_is_written_is_what_training_computed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, scales: Any, compute: torch.dtype
) -> None:
    """Bit for bit, for every parameter: embeddings and norms are seen as they are stored, too."""
    monkeypatch.setattr(loop, "compute_dtype", lambda device: compute)
    seen: list[dict[str, torch.Tensor]] = []
    mean_loss = qad_apply.mean_loss

    def spy(model: Any, rows: Any) -> float:
        seen.append(copy.deepcopy(model.state_dict()))
        return mean_loss(model, rows)

    monkeypatch.setattr(qad_apply, "mean_loss", spy)
    parent = quantized(tmp_path, kind)
    report = qad(tmp_path, recipe=recipe(scales=scales))
    assert {check.name: check.passed for check in report.checks} == dict.fromkeys(QAD.checks, True)
    trained, written = seen
    assert trained.keys() == written.keys()
    for name, weight in trained.items():
        assert weight.dtype == compute and torch.equal(weight, written[name]), name
    begun = checkpoints.load_for_scoring(parent, "cpu", compute).state_dict()
    assert all(not torch.equal(weight, begun[name]) for name, weight in written.items() if weight.ndim > 1)
    assert 0.001 < report.metadata["weights_changed"] <= 1
    assert report.metadata["loss_curve"][-1]["kl"] < report.metadata["loss_curve"][0]["kl"]
    assert json.loads((tmp_path / "qad/config.json").read_text()) == json.loads(
        (parent / "config.json").read_text()
    )
    assert not checkpoints.has_masters(tmp_path / "qad")


def test_kept_scales_stay_and_codes_change(tmp_path: Path) -> None:
    parent = quantized(tmp_path)
    qad(tmp_path, recipe=recipe(scales="kept"))
    qad(tmp_path, "follows", recipe=recipe(scales="new"))
    before, after, follows = (
        load_file(directory / "model.safetensors")
        for directory in (parent, tmp_path / "qad", tmp_path / "follows")
    )
    assert before.keys() == after.keys() == follows.keys()
    scales = [name for name in before if "absmax" in name or "quant_state" in name]
    codes = [name for name in before if before[name].dtype == torch.uint8 and name not in scales]
    assert len(scales) == 3 * len(codes) == 3 * 14
    assert all(torch.equal(before[name], after[name]) for name in scales)
    assert not any(torch.equal(before[name], after[name]) for name in codes)
    absmax = [name for name in scales if name.endswith("weight.absmax")]
    assert not any(torch.equal(before[name], follows[name]) for name in absmax)


def nearest_values(weight: torch.Tensor, stored: nf4.Stored) -> torch.Tensor:
    """By brute force over the 16 values of each weight's block, in float64."""
    scales = nf4.block_absmax(stored).double().repeat_interleave(64)[: weight.numel()].reshape(weight.shape)
    choices = nf4.values().double() * scales[..., None]
    nearest = (choices - weight.double()[..., None]).abs().argmin(-1, keepdim=True)
    return choices.gather(-1, nearest)[..., 0].float()


@pytest.mark.usefixtures("float32")
def test_gradients_pass_rounding_as_if_it_were_not_there(tmp_path: Path) -> None:
    """Written out with autograd: forward and backward at the stored weights, KL by its definition, AdamW on masters."""
    parent, data = quantized(tmp_path), tiny_dataset(11)
    settings = recipe(
        batch_size=11, gradient_accumulation=1, max_grad_norm=1e9, learning_rate=0.02, scales="kept"
    )
    done = qad(tmp_path, recipe=settings).metadata["loss_curve"]
    assert len(done) == 2

    grid = {weight.name: weight.parts for weight in checkpoints.quantized_weights(parent)}
    model = checkpoints.load_for_scoring(parent, "cpu", torch.float32)
    masters = {name: torch.nn.Parameter(weight.detach().clone()) for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(masters.values(), weight_decay=settings.weight_decay)
    teacher = load_teacher(tmp_path / "teacher", TeacherLogitsRecipe(), "cpu")[0]

    def stored(name: str) -> torch.Tensor:
        master = masters[name].detach()
        return nearest_values(master, grid[name]) if name in grid else master.bfloat16().float()

    tokens = sum(row.n_trained for row in data)
    for entry in done:
        for name, parameter in model.named_parameters():
            parameter.data, parameter.grad = stored(name), None
        divergence = torch.zeros(())
        for row in data:
            ids, content = torch.tensor([row.input_ids]), torch.tensor(row.trained[1:])
            ours = model(ids).logits[0, :-1][content].log_softmax(-1)
            with torch.no_grad():
                theirs = teacher(ids).logits[0, :-1][content].log_softmax(-1)
            divergence = divergence + (theirs.exp() * (theirs - ours)).sum()
        loss = divergence / tokens
        assert entry["loss"] == pytest.approx(loss.item(), rel=5e-3 if entry["step"] == 1 else 2e-2)
        loss.backward()
        for name, parameter in model.named_parameters():
            masters[name].grad = parameter.grad
        optimizer.param_groups[0]["lr"] = entry["lr"]
        optimizer.step()
    written = dict(checkpoints.dense_tensors(tmp_path / "qad"))
    for name in masters:
        # Where a gradient is all but zero, rounding decides the sign, and so a whole step of AdamW.
        same = torch.isclose(written[name].float(), stored(name), rtol=1e-2, atol=1e-3)
        assert (~same).sum() <= 1 + 0.03 * same.numel(), name


@pytest.mark.parametrize("kind", ["nf4", "int4", "int8_grouped"])
def test_fitted_scales_are_those_of_the_least_squares(kind: str) -> None:
    """Against the alternation block by block in float64, as numpy solves it."""
    torch.manual_seed(7)
    form = QuantizationRecipe(kind=kind, double_quant=False).format
    assert isinstance(form, GridFormat)
    before = torch.randn(32, 192)
    before[3, :64] = 0
    grid = form.quantize(before)
    master = before + 0.1 * torch.randn(before.shape) * before.abs().mean()
    found = form.blocks(form.scales(form.fitted(master, grid)))[:, 0].double().numpy()
    levels = form.levels().double().numpy()
    for block, start, scale in zip(
        form.blocks(master), form.blocks(form.scales(grid))[:, 0], found, strict=True
    ):
        weights, wanted = block.double().numpy(), float(start)
        for _ in range(FITS):
            chosen = levels[np.abs(weights[:, None] - levels * wanted).argmin(1)]
            if wanted and chosen.any():
                wanted = np.linalg.lstsq(chosen[:, None], weights, rcond=None)[0][0]
                wanted = wanted if kind == "nf4" else float(torch.tensor(wanted).bfloat16())
        assert scale == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int4", "int8_grouped"])
def test_fitted_scales_bring_weights_nearer_and_leave_stored_ones_alone(kind: str) -> None:
    torch.manual_seed(8)
    form = QuantizationRecipe(kind=kind).format
    assert isinstance(form, GridFormat)
    stored = StoredWeight("w", (64, 192), form, form.quantize(torch.randn(64, 192)))
    fitted, kept = (StoredForm({"w": stored}, scales, "cpu") for scales in ("fitted", "kept"))
    exact = stored.dequantized()
    assert torch.allclose(fitted("w", exact), exact, rtol=1e-2)
    moved = exact + 0.1 * torch.randn(exact.shape)
    assert (fitted("w", moved) - moved).norm() < 0.99 * (kept("w", moved) - moved).norm()
    written = StoredWeight("w", stored.shape, form, fitted.tensors("w", moved))
    parts = {part: written.parts[form.tensor_name("w", part)] for part in stored.parts}
    assert torch.equal(form.dequantize(parts), fitted("w", moved))


@pytest.mark.parametrize("kind", ["nf4", "int4", "int8_grouped"])
def test_masters_in_their_bins_are_the_stored_weights_and_near_what_q_rounded(kind: str) -> None:
    torch.manual_seed(3)
    form = QuantizationRecipe(kind=kind).format
    assert isinstance(form, GridFormat)
    original = torch.randn(64, 128)
    nearest = form.quantize(original)
    # As a rounding by layer output or by chance would choose them: the nearest code, or one beside it.
    codes = form.codes(nearest).int() + torch.randint(-1, 2, original.shape)
    other = form.with_codes(nearest, codes.clamp(0, len(form.levels()) - 1).to(torch.uint8))
    for parts, most in ((nearest, 0.01), (other, 0.7)):
        weight = StoredWeight("w", (64, 128), form, parts)
        master, stored = within_bins(original, weight), weight.dequantized()
        assert torch.equal(StoredForm({"w": weight}, "kept", "cpu")("w", master), stored)
        # Never on the other side of the stored value, and no further from it than what Q rounded.
        assert ((master - stored) * (original - stored) >= -1e-6).all()
        assert ((master - stored).abs() <= (original - stored).abs() + 1e-6).all()
        assert (~torch.isclose(master, original, rtol=1e-5, atol=1e-6)).double().mean() < most


def test_masters_that_start_unquantized_move_codes_at_a_small_rate(tmp_path: Path) -> None:
    quantized(tmp_path)
    slow = {"learning_rate": 2e-4, "scales": "kept"}
    plain = qad(tmp_path, recipe=recipe(**slow))
    near = qad(
        tmp_path,
        "near",
        recipe=recipe(masters="unquantized", **slow),
        models={"unquantized": tmp_path / "full"},
    )
    first = [report.metadata["loss_curve"][0]["loss"] for report in (plain, near)]
    assert first[0] == first[1]
    assert near.metadata["weights_changed"] > 10 * plain.metadata["weights_changed"]
    assert all(check.passed for check in near.checks)


def test_the_model_before_q_is_read_where_masters_start_from_it() -> None:
    read = QAD.reads(recipe(masters="unquantized")).models["unquantized"]
    assert QAD.reads(recipe()).models == {}
    steps = {
        "Q-QAD": ["Q", "QAD"],
        "P-Q-QAD": ["P", "Q", "QAD"],
        "Q-KD-Q-QAD-QAD": ["Q", "D", "KD", "Q", "QAD", "QAD"],
    }
    found = {text: read([technique(step) for step in path[:-1]]) for text, path in steps.items()}
    assert found == {"Q-QAD": 0, "P-Q-QAD": 1, "Q-KD-Q-QAD-QAD": 3}


@pytest.mark.usefixtures("float32")
def test_a_killed_step_goes_on_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "CHECKPOINT_EVERY", 2)
    quantized(tmp_path)
    reports = 0

    def kill(done: int, total: int, note: str) -> None:
        nonlocal reports
        reports += 1
        if reports == 3:
            raise Killed

    assert qad(tmp_path, "undisturbed").metadata["training_notes"] == []
    with pytest.raises(Killed):
        qad(tmp_path, "killed", report=kill, scratch=tmp_path / "scratch")
    resumed = qad(tmp_path, "resumed", scratch=tmp_path / "scratch")
    assert resumed.metadata["training_notes"] == ["resumed after step 2"]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("undisturbed", "resumed")]
    assert files[0] == files[1]


@pytest.mark.usefixtures("float32")
def test_the_check_fails_where_other_codes_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = StoredForm.tensors
    monkeypatch.setattr(StoredForm, "tensors", lambda self, name, master: tensors(self, name, 1.2 * master))
    quantized(tmp_path)
    passed = {check.name: check.passed for check in qad(tmp_path).checks}
    assert passed == {"weights_finite": True, "size_as_asked": True, "as_trained": False}


@pytest.mark.usefixtures("float32")
def test_a_rate_below_half_a_bin_is_noted(tmp_path: Path) -> None:
    quantized(tmp_path)
    report = qad(tmp_path, recipe=recipe(learning_rate=1e-7))
    assert report.metadata["weights_changed"] == 0
    assert any("raise it, or train longer" in note for note in report.metadata["training_notes"])


def test_a_full_precision_parent_is_refused(tmp_path: Path) -> None:
    quantized(tmp_path)
    with pytest.raises(StudyError, match="put a Q before it"):
        qad(tmp_path, parent=tmp_path / "full")


def test_the_first_loss_is_that_of_a_live_teacher(tmp_path: Path, float32: None) -> None:
    """A store at temperature 1 is the teacher itself, to bfloat16."""
    parent, data = quantized(tmp_path), tiny_dataset(11)
    first = qad(tmp_path, recipe=recipe(epochs=1)).metadata["loss_curve"][0]["kl"]
    live = LiveTeacher(load_teacher(tmp_path / "teacher", TeacherLogitsRecipe(), "cpu")[0], data)
    model = checkpoints.load_for_scoring(parent, "cpu", torch.float32)
    done = loop.train(model, data, recipe(epochs=1), seed=0, distil=loop.Distil(live, 1.0, 1.0))
    assert first == pytest.approx(done.loss_curve[0]["kl"], rel=1e-2)


def test_it_takes_more_memory_than_distillation_and_leaves_the_config() -> None:
    sizes = {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    }
    config = {**sizes, "quantization_config": QuantizationRecipe().format.to_config()}
    context = StepContext(max_length=512)
    found = QAD.predict(config, QADRecipe(), context)
    plain = technique("KD").predict(sizes, technique("KD").Recipe(), context)
    assert found.config == config
    assert found.memory and plain.memory and 1.0 < found.memory / plain.memory < 1.2


@pytest.mark.timeout(400)
def test_a_whole_study(tmp_path: Path) -> None:
    """Through Dagster: a row in the leaderboard, as large as Q's, nearer to the teacher."""
    project = Project(tmp_path)
    raw = project.read()
    raw["techniques"]["QAD"] = {
        **raw["techniques"]["KD"],
        "alpha": 1.0,
        "temperature": 1.0,
        "learning_rate": 5e-3,
    }
    raw["orderings"] = ["Q", "Q-QAD", "Q-QAD-KD"]
    raw["evaluation"] = {
        "perplexity": {"batch_size": 8},
        "answers": {"max_new_tokens": 4},
        "diagnostics": {"tokens": 200},
    }
    project.write(raw)
    code, output = project.compression("run")
    assert code == 0, output
    rows = {
        ordering: (size, perplexity)
        for ordering, size, perplexity in project.query(
            "SELECT ordering, size_mib, perplexity FROM leaderboard"
        )
    }
    assert rows["Q-QAD"][0] == pytest.approx(rows["Q"][0], abs=1e-3)
    assert rows["Q-QAD"][1] < rows["Q"][1]
    # What KD trains begins on the grid that QAD left.
    survival = project.query("SELECT on_grid, codes_changed FROM step_diagnostics WHERE model = 'q_qad_kd'")
    assert all(on_grid for on_grid, _ in survival) and survival
