"""A training that several devices share, against the same in one process: ranks on the CPU, joined by gloo."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from compression_assets.errors import StudyError
from compression_assets.store.reports import Report
from compression_assets.techniques.distillation.apply import distill
from compression_assets.techniques.distillation.recipe import DistillationRecipe
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.finetuning import finetune
from compression_assets.training.loop import TrainingReport
from compression_assets.training.ranks import launch
from compression_assets.training.teacher.shards import TeacherLogitsRecipe
from compression_assets.training.teacher.teacher_logits import TeacherLogits, write_teacher_logits
from compression_assets_tests.forked_ranks import run_forked
from compression_assets_tests.training_helpers import (
    Killed,
    checkpoints_in,
    recipe_of,
    save_model,
    tiny_dataset,
    tiny_model,
    weights_of,
)

pytestmark = [pytest.mark.usefixtures("float32"), pytest.mark.timeout(600)]
ROUNDING = 2.4e-7
"""Of a loss in float32, absolute, and beyond 1 relative: two units in its last place."""


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_run", run_forked)


def curve(report: TrainingReport, *names: str) -> torch.Tensor:
    return torch.tensor([[entry[name] for name in names] for entry in report.loss_curve], dtype=torch.float64)


def require_same(
    found: TrainingReport, expected: TrainingReport, shared: torch.nn.Module, alone: torch.nn.Module
) -> None:
    """Losses to two units in the last place, weights to 1e-5 of their norm."""
    names = [name for name in ("loss", "ce", "kl") if name in expected.loss_curve[0]]
    torch.testing.assert_close(curve(found, *names), curve(expected, *names), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(curve(found, "grad_norm"), curve(expected, "grad_norm"), rtol=1e-5, atol=0)
    assert curve(found, "lr", "step").equal(curve(expected, "lr", "step"))
    assert (found.tokens_seen, found.steps) == (expected.tokens_seen, expected.steps)
    for name, weight in weights_of(alone).items():
        # A bias of keys adds the same to all scores of a query, so its gradient is rounding, and AdamW scales that up.
        if not name.endswith("k_proj.bias"):
            assert (weights_of(shared)[name] - weight).norm() <= 1e-5 * weight.norm(), name


@pytest.fixture
def teacher(tmp_path: Path) -> tuple[TokenDataset, TeacherLogits]:
    """Stored logits of another model over fourteen rows."""
    dataset, directory = tiny_dataset(14, seed=5), tmp_path / "teacher"
    dataset.save(tmp_path / "data")
    save_model(tiny_model(seed=9), directory)
    made = {"temperature": 2.0, "teacher_fingerprint": "t"}
    write_teacher_logits(directory, tmp_path / "data", tmp_path / "logits", TeacherLogitsRecipe(), **made)
    return dataset, TeacherLogits.open(tmp_path / "logits", dataset)


KD = DistillationRecipe(
    alpha=0.3, epochs=2, learning_rate=1e-3, warmup_steps=2, batch_size=3, gradient_accumulation=2
)


def test_torchrun_distils_as_one_process(teacher: tuple[TokenDataset, TeacherLogits], tmp_path: Path) -> None:
    dataset, logits = teacher
    alone, shared = tiny_model(tied=False), tiny_model(tied=False)
    said: list[tuple[int, int, str]] = []
    expected = distill(alone, dataset, logits, KD, 3)
    found = distill(
        shared,
        dataset,
        logits,
        KD,
        3,
        report=lambda *words: said.append(words),
        checkpoints=checkpoints_in(tmp_path),
        devices=["cpu", "cpu"],
    )
    require_same(found, expected, shared, alone)
    assert [done for done, _, _ in said][-1] == said[-1][1] == found.tokens_seen
    assert found.notes == ["shared by 2 devices"]
    assert found.peak_bytes > 100 << 20
    assert not list((tmp_path / "ranks").glob("job*"))


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("ranks", "kind", "tied", "checkpointing"), [(3, "qwen2", True, False), (2, "llama", False, True)]
)
def test_ranks_make_the_model_that_one_process_makes(
    ranks: int, kind: str, tied: bool, checkpointing: bool
) -> None:
    recipe = recipe_of(
        batch_size=2,
        gradient_accumulation=2,
        epochs=2,
        learning_rate=1e-3,
        weight_decay=0.1,
        gradient_checkpointing=checkpointing,
    )
    alone, shared = tiny_model(kind, tied=tied), tiny_model(kind, tied=tied)
    expected = finetune(alone, tiny_dataset(13), recipe, 3)
    require_same(
        finetune(shared, tiny_dataset(13), recipe, 3, devices=["cpu"] * ranks), expected, shared, alone
    )


@pytest.mark.usefixtures("forked")
def test_more_ranks_than_rows_of_a_step_change_nothing() -> None:
    recipe = recipe_of(batch_size=1, epochs=1)
    alone, shared = tiny_model(), tiny_model()
    expected = finetune(alone, tiny_dataset(4), recipe, 0)
    require_same(finetune(shared, tiny_dataset(4), recipe, 0, devices=["cpu"] * 3), expected, shared, alone)


@pytest.mark.usefixtures("forked")
def test_a_killed_training_goes_on_with_another_number_of_ranks(
    teacher: tuple[TokenDataset, TeacherLogits], tmp_path: Path
) -> None:
    dataset, logits = teacher
    alone, shared = tiny_model(), tiny_model()
    expected = distill(alone, dataset, logits, KD, 3)

    def kill(done: int, total: int, note: str) -> None:
        if done > total * 0.7:
            raise Killed

    def run(devices: Sequence[str], report: Report) -> TrainingReport:
        kept = checkpoints_in(tmp_path)
        return distill(shared, dataset, logits, KD, 3, report=report, checkpoints=kept, devices=devices)

    with pytest.raises(Killed):
        run(["cpu"] * 3, kill)
    kept = [path.name for path in (tmp_path / "ranks").iterdir()]
    assert len(kept) == 1
    assert {file.suffix for file in (tmp_path / "ranks" / kept[0]).iterdir()} == {".safetensors", ".json"}
    found = run(["cpu"] * 2, lambda *_: None)
    assert f"resumed after step {int(kept[0][-6:])}" in found.notes
    require_same(found, expected, shared, alone)


@pytest.mark.usefixtures("forked")
def test_a_lost_rank_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from compression_assets.training.ranks import rank

    step = rank._Rank._step

    def killed(self: Any, index: int, *others: Any) -> None:
        if index == 1 and self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, index, *others)

    monkeypatch.setattr(rank._Rank, "_step", killed)
    with pytest.raises(RuntimeError, match="a rank was lost"):
        finetune(tiny_model(), tiny_dataset(8), recipe_of(batch_size=2), 0, devices=["cpu", "cpu"])


@pytest.mark.usefixtures("forked")
def test_where_memory_runs_out_the_ranks_begin_again_with_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from compression_assets.training.ranks import rank

    forward = rank._Rank._forward_backward

    def small(self: Any, rows: list[int], *others: Any) -> Any:
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, rows, *others)

    alone, shared = tiny_model(), tiny_model()
    recipe = recipe_of(batch_size=4)
    expected = finetune(alone, tiny_dataset(12), recipe, 0)
    monkeypatch.setattr(rank._Rank, "_forward_backward", small)
    found = finetune(shared, tiny_dataset(12), recipe, 0, devices=["cpu", "cpu"])
    require_same(found, expected, shared, alone)
    assert "out of memory: 1 of 4 rows in a forward pass" in found.notes


@pytest.mark.usefixtures("forked")
def test_a_training_that_diverges_says_so_as_in_one_process() -> None:
    recipe = recipe_of(batch_size=2, learning_rate=1e30, epochs=4)
    with pytest.raises(StudyError) as alone:
        finetune(tiny_model(), tiny_dataset(12), recipe, 0)
    with pytest.raises(StudyError) as shared:
        finetune(tiny_model(), tiny_dataset(12), recipe, 0, devices=["cpu", "cpu"])
    assert str(shared.value) == str(alone.value)


def test_ranks_find_the_leased_devices_as_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch._visible(["cuda:1", "cuda:3"]) == {"CUDA_VISIBLE_DEVICES": "1,3"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b,GPU-c")
    assert launch._visible(["cuda:0", "cuda:2"]) == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-c"}
    assert json.dumps(launch._visible(["cpu", "cpu"])) == "{}"
