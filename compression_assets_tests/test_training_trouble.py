"""Training that diverges or runs out of memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaModel

from compression_assets.errors import StudyError
from compression_assets.training.finetuning import finetune
from compression_assets_tests.training_helpers import (
    Killed,
    checkpoints_in,
    recipe_of,
    tiny_dataset,
    tiny_model,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("float32")


def test_non_finite_loss_names_the_step() -> None:
    model = tiny_model()
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(StudyError, match="diverged at step 1 of 3: the loss is nan"):
        finetune(model, tiny_dataset(12), recipe_of(), 0)


def test_loss_explosion_names_the_step() -> None:
    recipe = recipe_of(epochs=20, learning_rate=50.0, warmup_steps=30, max_grad_norm=1e9)
    with pytest.raises(StudyError, match=r"diverged at step \d+ of 60: the loss has been above"):
        finetune(tiny_model(), tiny_dataset(12), recipe, 0)


def _failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], Exception | None]) -> list[int]:
    """Let the embedding fail for the batches of these sizes; returns the sizes that were tried."""
    tried: list[int] = []
    body = LlamaModel.forward

    def forward(self: Any, input_ids: torch.Tensor, **rest: Any) -> Any:
        if self.training:
            tried.append(len(input_ids))
            hidden = body(self, input_ids=input_ids, **rest)
            if error := fails(len(input_ids)):
                hidden.last_hidden_state.sum().backward()
                raise error
            return hidden
        return body(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    return tried


CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 9 bytes."
)


@pytest.mark.parametrize(
    "error",
    [
        *(CPU_ERROR, torch.OutOfMemoryError("CUDA out of memory."), MemoryError()),
        *(
            RuntimeError("Triton Error [CUDA]: out of memory"),
            RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling x"),
        ),
    ],
)
def test_out_of_memory_halves_the_rows_and_keeps_the_gradient(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tiny_dataset(10)
    whole = tiny_model()
    expected = finetune(whole, dataset, recipe_of(batch_size=5, max_grad_norm=100.0), 0)
    tried = _failing(monkeypatch, lambda rows: error if rows > 2 else None)
    split = tiny_model()
    done = finetune(split, dataset, recipe_of(batch_size=5, max_grad_norm=100.0), 0)
    assert tried == [5, 3, 2, 2, 1, 2, 2, 1]
    assert done.steps == expected.steps == 2
    assert [note.split(":")[0] for note in done.notes] == ["out of memory at step 1"] * 2
    assert "2 of 5 rows" in done.notes[1]
    for one, other in zip(done.loss_curve, expected.loss_curve, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for name, weight in weights_of(whole).items():
        torch.testing.assert_close(weights_of(split)[name], weight, rtol=1e-4, atol=1e-5)


def test_a_row_that_never_fits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, lambda rows: CPU_ERROR)
    with pytest.raises(StudyError, match=r"one row of up to \d+ tokens does not fit into the memory of cpu"):
        finetune(tiny_model(), tiny_dataset(6), recipe_of(), 0)


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, lambda rows: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        finetune(tiny_model(), tiny_dataset(6), recipe_of(), 0)


def test_a_resumed_run_keeps_the_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _failing(monkeypatch, lambda rows: CPU_ERROR if rows > 2 else None)

    def kill(done: int, total: int, note: str) -> None:
        if done > total * 0.7:
            raise Killed

    with pytest.raises(Killed):
        finetune(tiny_model(), tiny_dataset(14), recipe_of(), 0, "cpu", kill, checkpoints_in(tmp_path))
    tried.clear()
    done = finetune(tiny_model(), tiny_dataset(14), recipe_of(), 0, checkpoints=checkpoints_in(tmp_path))
    assert max(tried) == 2
    assert any(note.startswith("out of memory at step 1") for note in done.notes)
