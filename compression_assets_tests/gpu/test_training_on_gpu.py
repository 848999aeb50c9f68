"""Training on a GPU: optimisers, going on after a kill, memory that runs out, the same bits twice, teachers, QAD."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from compression_assets.machine.precision import compute_dtype
from compression_assets.store.reports import Report, no_report
from compression_assets.techniques.distillation.apply import distill
from compression_assets.techniques.distillation.recipe import DistillationRecipe
from compression_assets.techniques.pruning.blocks import prune_ffn
from compression_assets.techniques.pruning.choice import most_important
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.techniques.pruning.width import ffn_importance
from compression_assets.techniques.qad import QuantizationAwareDistillation as QAD
from compression_assets.techniques.qad.recipe import QADRecipe
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.training import kernels
from compression_assets.training.finetuning import FinetuneRecipe, finetune
from compression_assets.training.loop import TrainingReport
from compression_assets.training.masters import MasterWeights
from compression_assets.training.ranks.launch import train_on_ranks
from compression_assets.training.resuming import Checkpoints
from compression_assets.training.teacher.teacher_forward import LiveTeacher, load_teacher
from compression_assets.training.teacher.teacher_logits import (
    TeacherLogits,
    TeacherLogitsRecipe,
    write_teacher_logits,
)
from compression_assets_tests.tiny_models import tiny_directory, tiny_model
from compression_assets_tests.training_helpers import Killed

WIDE = {"hidden_size": 256, "intermediate_size": 512}
"""Wide enough that bitsandbytes keeps moments in 8 bits (4,096 weights) and pages them (100,000)."""
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit")


def rows(count: int = 12, length: int = 40, vocabulary: int = 256, seed: int = 0) -> TokenDataset:
    made = torch.randint(
        0, vocabulary, (count, length), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return TokenDataset([TokenRow(str(n), ids, [True] * len(ids)) for n, ids in enumerate(made)])


def recipe_of(**changes: Any) -> FinetuneRecipe:
    plain = {
        "epochs": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "batch_size": 2,
        "gradient_accumulation": 1,
    }
    return FinetuneRecipe(**(plain | changes))


def trained(
    device: str, recipe: FinetuneRecipe, report: Report = no_report, kept: Checkpoints | None = None
) -> tuple[torch.Tensor, TrainingReport]:
    """All weights of a model after training, and the report."""
    model = tiny_model("qwen2", **WIDE)
    done = finetune(model, rows(), recipe, 0, device, report, kept)
    return torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()]), done


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_where_it_goes_on_the_cpu(device: str, optimizer: str, checkpointing: bool) -> None:
    recipe = recipe_of(optimizer=optimizer, gradient_checkpointing=checkpointing)
    begun = torch.cat([p.detach().flatten() for p in tiny_model("qwen2", **WIDE).parameters()])
    (here, _), (there, done) = trained("cpu", recipe), trained(device, recipe)
    assert done.loss_curve[-1]["loss"] < done.loss_curve[0]["loss"]
    assert torch.cosine_similarity(here - begun, there - begun, dim=0) > 0.9


@pytest.mark.parametrize("distilled", [False, True])
def test_what_is_compiled_trains_as_what_is_not(
    tmp_path: Path, device: str, distilled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On rows of many lengths, by kernels that were made once for all of them."""
    dataset = TokenDataset([row for length in (9, 17, 30, 40) for row in rows(4, length, seed=length)])
    recipe, weights, losses = recipe_of(gradient_checkpointing=distilled), [], []
    directory = tiny_directory(tmp_path / "teacher", "qwen2", seed=4)
    teacher = LiveTeacher(load_teacher(directory, TeacherLogitsRecipe(), device)[0], dataset, device)
    torch._dynamo.utils.counters.clear()
    for worth in (10**9, 0):
        monkeypatch.setattr(kernels, "WORTH_COMPILING", worth)
        model = tiny_model("qwen2", **WIDE)
        if distilled:
            kd = DistillationRecipe(**recipe.model_dump())
            done = distill(model, dataset, teacher, kd, 0, device)
        else:
            done = finetune(model, dataset, recipe, 0, device)
        weights.append(torch.cat([p.detach().flatten().cpu() for p in model.parameters()]))
        losses.append([entry[name] for entry in done.loss_curve for name in ("loss", "ce", "grad_norm")])
    begun = torch.cat([p.detach().flatten() for p in tiny_model("qwen2", **WIDE).parameters()])
    plain, compiled = (one - begun for one in weights)
    # Two trainings that differ by rounding drift apart: of 16 steps the first ten are compared.
    assert losses[1][:30] == pytest.approx(losses[0][:30], rel=0.02)
    assert torch.cosine_similarity(plain, compiled, dim=0) > 0.9
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, device: str, optimizer: str) -> None:
    recipe = recipe_of(optimizer=optimizer)

    def kill(done: int, total: int, note: str) -> None:
        if done > 0.6 * total:
            raise Killed

    kept = Checkpoints(tmp_path, 2, "run")
    with sdpa_kernel(SDPBackend.MATH):
        straight, _ = trained(device, recipe)
        with pytest.raises(Killed):
            trained(device, recipe, kill, kept)
        resumed, done = trained(device, recipe, kept=kept)
    assert any("resumed after step" in note for note in done.notes)
    assert torch.equal(straight, resumed)


def test_moments_that_are_paged_stay_paged_when_a_training_goes_on(device: str) -> None:
    def masters() -> MasterWeights:
        model = tiny_model("qwen2", **WIDE).to(device)
        return MasterWeights(model, torch.bfloat16, 1e-3, 0.0, "paged_adamw_8bit")

    first, second = masters(), masters()
    for master in first.masters:
        master.grad = torch.randn_like(master)
    first.step(1e-3, 1.0)
    second.load_state({name: tensor.cpu() for name, tensor in first.state().items()})
    paged = 0
    for one, other in zip(first.masters, second.masters, strict=True):
        state, again = first.optimizer.state[one], second.optimizer.state[other]
        assert torch.equal(state["state1"].cpu(), again["state1"].cpu()) and state["step"] == again["step"]
        assert getattr(again["state1"], "is_paged", False) == getattr(state["state1"], "is_paged", False)
        paged += getattr(again["state1"], "is_paged", False)
    assert paged


def test_the_same_training_twice(device: str) -> None:
    """Bit for bit but for the backward pass of fused attention, which torch lets sum in any order here."""
    with sdpa_kernel(SDPBackend.MATH):
        (one, _), (other, _) = trained(device, recipe_of()), trained(device, recipe_of())
    assert torch.equal(one, other)
    (one, _), (other, _) = trained(device, recipe_of()), trained(device, recipe_of())
    begun = torch.cat([p.detach().flatten() for p in tiny_model("qwen2", **WIDE).parameters()])
    assert torch.cosine_similarity(one - begun, other - begun, dim=0) > 0.9


def test_when_memory_runs_out_there_are_fewer_rows_at_once(device: str) -> None:
    dataset = rows(16, 512)

    def train() -> TrainingReport:
        model = tiny_model("qwen2", **WIDE)
        recipe = recipe_of(epochs=1, batch_size=16, learning_rate=1e-4)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return finetune(model, dataset, recipe, 0, device)

    whole = train()
    needed = torch.cuda.max_memory_reserved(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(0.6 * needed / total, device)
    try:
        halved = train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    notes = [any("out of memory at step 1" in note for note in run.notes) for run in (whole, halved)]
    assert notes == [False, True]
    assert halved.loss_curve[0]["loss"] == pytest.approx(whole.loss_curve[0]["loss"], rel=1e-3)


@pytest.mark.parametrize("rank", [None, 4])
def test_an_8_bit_teacher_says_nearly_what_it_says_in_16_bit(
    tmp_path: Path, device: str, rank: int | None
) -> None:
    directory, dataset = tiny_directory(tmp_path / "teacher", "qwen2", tie_word_embeddings=False), rows()
    model, notes = load_teacher(directory, TeacherLogitsRecipe(load_in_8bit=True), device)
    assert notes == ["teacher in 8 bit (LLM.int8, threshold 6.0)"]
    eight = LiveTeacher(model, dataset, device)
    sixteen = LiveTeacher(load_teacher(directory, TeacherLogitsRecipe(), device)[0], dataset, device)
    one, other = (teacher.logits(teacher.hidden([0, 1, 2])).float() for teacher in (eight, sixteen))
    assert torch.cosine_similarity(one, other, dim=1).min() > 0.98
    recipe = DistillationRecipe(**recipe_of().model_dump(), adapter_rank=rank)
    done = distill(tiny_model("qwen2"), dataset, eight, recipe, 0, device)
    assert done.loss_curve[-1]["loss"] < done.loss_curve[0]["loss"]


@pytest.mark.parametrize("coding", ["hidden", "dense", "top_k"])
def test_a_store_teaches_as_the_teacher_itself(tmp_path: Path, device: str, coding: str) -> None:
    pytest.importorskip("pyarrow")
    directory, dataset = tiny_directory(tmp_path / "teacher", "qwen2", seed=4), rows()
    dataset.save(tmp_path / "data")
    write_teacher_logits(
        *(directory, tmp_path / "data", tmp_path / "logits", TeacherLogitsRecipe(coding=coding, k=64)),
        temperature=2.0,
        teacher_fingerprint="t",
        device=device,
    )
    live = LiveTeacher(load_teacher(directory, TeacherLogitsRecipe(), device)[0], dataset, device)
    store, student = TeacherLogits.open(tmp_path / "logits", dataset), tiny_model("qwen2")
    recipe = DistillationRecipe(**recipe_of(epochs=1).model_dump())
    first, second = (
        distill(copy.deepcopy(student), dataset, teacher, recipe, 0, device).loss_curve[0]["loss"]
        for teacher in (live, store)
    )
    assert second == pytest.approx(first, rel=0.05 if coding == "top_k" else 0.01)


@pytest.mark.parametrize(
    ("kind", "scales"),
    [("nf4", "kept"), ("nf4", "fitted"), ("nf4", "new"), ("int8", "kept"), ("int4", "fitted")],
)
def test_qad_writes_what_it_trained_with(tmp_path: Path, device: str, kind: str, scales: str) -> None:
    pytest.importorskip("pyarrow")
    if kind == "int4":
        pytest.importorskip("compressed_tensors")
    dataset, teacher = rows(), tiny_directory(tmp_path / "teacher", "qwen2", seed=4)
    quantize_checkpoint(
        tiny_directory(tmp_path / "full", "qwen2"), tmp_path / "q", QuantizationRecipe(kind=kind), device
    )
    dataset.save(tmp_path / "data")
    write_teacher_logits(
        *(teacher, tmp_path / "data", tmp_path / "logits", TeacherLogitsRecipe()),
        temperature=2.0,
        teacher_fingerprint="t",
        device=device,
    )
    step = StepInputs(
        parent=tmp_path / "q",
        output=tmp_path / "qad",
        recipe=QADRecipe(**recipe_of(learning_rate=1e-2).model_dump(), scales=scales),
        data={"distillation_set": tmp_path / "data", "teacher_logits": tmp_path / "logits"},
        seed=0,
        device=device,
    )
    report = QAD.apply(step)
    assert {check.name: check.passed for check in report.checks} == dict.fromkeys(QAD.checks, True)
    assert report.metadata["weights_changed"] > 0.001


def test_pruning_keeps_the_neurons_that_it_keeps_on_the_cpu(device: str) -> None:
    kept = []
    for place in ("cpu", device):
        model = tiny_model("qwen2", **WIDE).to(place)
        keep = [
            most_important(scores, 256) for scores in ffn_importance(model, rows(), PruningRecipe(), place)
        ]
        prune_ffn(model, keep)
        assert model(torch.tensor([[1, 2, 3]], device=place)).logits.isfinite().all()
        kept.append([set(one.tolist()) for one in keep])
    for here, there in zip(*kept, strict=True):
        assert len(here & there) >= 250


def test_a_rank_of_its_own_trains_as_the_loop_does(tmp_path: Path, device: str) -> None:
    """Sharded over one device, in a process that torchrun starts: NCCL, FSDP2's formats, a checkpoint gone on from."""
    pytest.importorskip("pyarrow")
    recipe, kept = recipe_of(gradient_checkpointing=True), Checkpoints(tmp_path, 2, "run")
    begun = torch.cat([p.detach().flatten() for p in tiny_model("qwen2", **WIDE).parameters()])
    alone, expected = trained(device, recipe)

    def on_a_rank(report: Report) -> tuple[torch.Tensor, dict[str, Any]]:
        model = tiny_model("qwen2", **WIDE)
        done = train_on_ranks(
            model,
            rows(),
            recipe,
            seed=0,
            devices=[device],
            dtype=compute_dtype(device),
            report=report,
            checkpoints=kept,
        )
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), done

    def kill(done: int, total: int, note: str) -> None:
        if done > 0.6 * total:
            raise Killed

    with pytest.raises(Killed):
        on_a_rank(kill)
    shared, done = on_a_rank(no_report)
    assert done["resumed_after"] > 0 and done["peak_bytes"] > 1 << 20
    losses = ([entry["loss"] for entry in curve] for curve in (expected.loss_curve, done["loss_curve"]))
    assert next(losses) == pytest.approx(next(losses), rel=0.01)
    assert torch.cosine_similarity(alone - begun, shared - begun, dim=0) > 0.9


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_two_devices_share_a_training_and_a_teacher(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    devices = ["cuda:0", "cuda:1"]
    (here, _), model = trained("cuda:0", recipe_of()), tiny_model("qwen2", **WIDE)
    done = finetune(model, rows(), recipe_of(), 0, "cuda:0", devices=devices)
    there = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    begun = torch.cat([p.detach().flatten() for p in tiny_model("qwen2", **WIDE).parameters()])
    assert torch.cosine_similarity(here - begun, there - begun, dim=0) > 0.9
    assert "shared by 2 devices" in done.notes
    directory = tiny_directory(tmp_path / "teacher", "qwen2")
    (one, _), (spread, notes) = (
        load_teacher(directory, TeacherLogitsRecipe(), "cuda:0", given) for given in ((), devices)
    )
    assert notes == ["its layers spread over 2 devices"]
    states = [LiveTeacher(teacher, rows(), "cuda:0").hidden([0, 1, 2]).cpu() for teacher in (one, spread)]
    torch.testing.assert_close(*states)
