"""The training loop on tiny models: what a step averages over, what never counts, masters, the schedule."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from compression_assets.errors import StudyError
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.training import loop, masters, schedule
from compression_assets.training.finetuning import finetune, finetune_teacher
from compression_assets_tests.training_helpers import (
    VOCABULARY,
    Killed,
    checkpoints_in,
    recipe_of,
    save_model,
    tiny_dataset,
    tiny_model,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("float32")


def _content_loss(model: torch.nn.Module, dataset: TokenDataset) -> torch.Tensor:
    """Mean CE over predicted content tokens, row by row and with the model's own logits."""
    total, count = torch.zeros(()), 0
    for row in dataset:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        losses = F.cross_entropy(logits, torch.tensor(row.input_ids[1:]), reduction="none")
        mask = torch.tensor(row.trained[1:])
        total, count = total + losses[mask].sum(), count + int(mask.sum())
    return total / count


def _score(model: torch.nn.Module, dataset: TokenDataset) -> float:
    with torch.no_grad():
        return float(_content_loss(model, dataset))


def _gradients(
    model: torch.nn.Module, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> dict:
    """Gradient of one step over the whole dataset as the optimiser would get it, and the loss reported for it."""
    seen: dict[str, Any] = {}

    def look(self: masters.MasterWeights, learning_rate: float, max_grad_norm: float) -> float:
        seen.update(
            {name: master.grad.clone() for name, master in zip(self.names, self.masters, strict=True)}
        )
        return 1.0

    monkeypatch.setattr(masters.MasterWeights, "step", look)
    done = finetune(model, dataset, recipe_of(**changes), 0)
    return seen | {"loss": torch.tensor(done.loss_curve[0]["loss"])}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_step_is_the_gradient_of_the_mean_over_content(
    kind: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dataset = tiny_model(kind, tied=tied), tiny_dataset(6)
    loss = _content_loss(model, dataset)
    names = [name for name, _ in model.named_parameters()]
    expected = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    found = _gradients(model, dataset, monkeypatch, batch_size=6)
    torch.testing.assert_close(found.pop("loss"), loss.detach())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_accumulated_step_equals_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = tiny_dataset(7)
    whole = _gradients(tiny_model(), dataset, monkeypatch, batch_size=7)
    split = _gradients(tiny_model(), dataset, monkeypatch, batch_size=2, gradient_accumulation=4)
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-4, atol=1e-6)


def test_padding_never_contributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long row without a content token in the batch pads all others."""
    dataset = tiny_dataset(5)
    empty = TokenRow("long", [1] * 60, [False] * 60)
    plain = _gradients(tiny_model(), dataset, monkeypatch, batch_size=6)
    monkeypatch.setattr(loop, "plan", lambda *_: [[list(range(6))]])
    padded = _gradients(tiny_model(), TokenDataset([*dataset.rows, empty]), monkeypatch, batch_size=6)
    for name in plain:
        torch.testing.assert_close(padded[name], plain[name], rtol=1e-4, atol=1e-6)


def test_template_tokens_are_no_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another template token after the last content changes nothing; unmasking it does."""
    base = tiny_dataset(1).rows[0]

    def ending(token: int, content: bool) -> dict:
        row = TokenRow("r", [*base.input_ids, token], [*base.content, content])
        return _gradients(tiny_model(), TokenDataset([row]), monkeypatch)

    first, second, unmasked = ending(5, False), ending(9, False), ending(9, True)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)
    assert (unmasked["loss"] - first["loss"]).abs() > 1e-3


def test_training_learns_and_is_repeatable() -> None:
    dataset, models = tiny_dataset(12), [tiny_model(), tiny_model()]
    before = _score(models[0], dataset)
    notes: list[tuple[int, int, str]] = []
    for model in models:
        done = finetune(model, dataset, recipe_of(epochs=4), 3, "cpu", lambda *call: notes.append(call))
    assert _score(models[0], dataset) < before - 0.3
    for name, weight in weights_of(models[0]).items():
        assert torch.equal(weight, weights_of(models[1])[name])
    assert done.tokens_seen == 4 * dataset.n_trained
    assert done.steps == 12 == len(done.loss_curve)
    assert notes[-1][:2] == (done.tokens_seen, done.tokens_seen)
    assert notes[-1][2].startswith("loss ")


class _Reader(torch.nn.Module):
    """A model that reads its table twice in a pass."""

    def __init__(self, table: torch.nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        read = self.table(ids)
        read *= 1.5  # in place, as CTRL does
        return read.sin() + self.table(ids.flip(1)).square()


class _Scaled(torch.nn.Embedding):
    """As Gemma's: its output is not the rows of its weight."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return 3.0 * super().forward(ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.nn.Embedding, _Scaled])
@pytest.mark.parametrize("padding", [None, 2])
def test_rows_of_an_embedding_get_the_gradient_that_autograd_gives_them(
    kind: type[torch.nn.Embedding], padding: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(11)
    ours = _Reader(kind(9, 4, padding_idx=padding))
    theirs = copy.deepcopy(ours).to(dtype)
    kept = masters.MasterWeights(ours, dtype, 0.1, 0.0)
    total = torch.zeros(9, 4)
    for _ in range(2):  # two passes of one step
        ids = torch.randint(0, 5, (2, 6))
        for model in (ours, theirs):
            (model(ids).float() ** 3).sum().backward()
        assert theirs.table.weight.grad is not None
        total += theirs.table.weight.grad
        theirs.table.weight.grad = None
    found = kept.gradient(ours.table.weight)
    assert found is not None and found.dtype == torch.float32
    assert ours.table.weight.grad is None and total[:5].any() and not total[5:].any()
    torch.testing.assert_close(found, total, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    assert padding is None or not found[padding].any()


def test_a_token_that_is_read_often_keeps_its_gradient() -> None:
    """Summed in bfloat16, 4,000 gradients of the same sign lose a third."""
    torch.manual_seed(3)
    table = torch.nn.Embedding(4, 8)
    kept = masters.MasterWeights(table, torch.bfloat16, 0.1, 0.0)
    direction = (1 + 0.1 * torch.randn(1, 4000, 8)).bfloat16()
    table(torch.ones(1, 4000, dtype=torch.long)).backward(direction)
    torch.testing.assert_close(
        kept.gradient(table.weight)[1], direction.float().sum((0, 1)), rtol=1e-5, atol=0
    )


def test_a_frozen_embedding_has_no_gradient() -> None:
    model = _Reader(torch.nn.Embedding(9, 4))
    model.table.weight.requires_grad_(False)
    model.out = torch.nn.Linear(4, 1)
    kept = masters.MasterWeights(model, torch.float32, 0.1, 0.0)
    model.out(model(torch.randint(0, 9, (2, 6)))).sum().backward()
    assert kept.gradient(model.table.weight) is None and model.table.weight.grad is None


def test_incomplete_last_step_is_used() -> None:
    dataset = tiny_dataset(11)
    done = finetune(tiny_model(), dataset, recipe_of(batch_size=2, gradient_accumulation=2), 0)
    assert done.steps == 3
    assert done.tokens_seen == dataset.n_trained


def test_learning_rate_warms_up_and_decays() -> None:
    recipe = recipe_of(warmup_steps=2, learning_rate=1.0)
    assert [schedule.learning_rate(recipe, step, 6) for step in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_warm_up_longer_than_training_is_noted() -> None:
    assert "never reached" in finetune(tiny_model(), tiny_dataset(2), recipe_of(warmup_steps=50), 0).notes[0]


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_compute_keeps_float32_masters(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates far below a bfloat16 step add up in the masters, and the rotary frequencies are never rounded."""
    monkeypatch.setattr(loop, "compute_dtype", lambda device: torch.bfloat16)
    model = tiny_model(tied=tied)
    before, frequencies = weights_of(model), model.model.rotary_emb.inv_freq.clone()
    done = finetune(model, tiny_dataset(8), recipe_of(learning_rate=1e-5, epochs=2), 0)
    assert done.steps == 4
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    for name, weight in weights_of(model).items():
        assert weight.dtype == torch.float32
        moved = (weight - before[name]).abs()
        assert 0 < moved.max() < 5e-5


def test_bfloat16_trains_like_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, exact, rounded = tiny_dataset(8), tiny_model(), tiny_model()
    finetune(exact, dataset, recipe_of(epochs=3), 0)
    monkeypatch.setattr(loop, "compute_dtype", lambda device: torch.bfloat16)
    finetune(rounded, dataset, recipe_of(epochs=3), 0)
    assert _score(rounded, dataset) == pytest.approx(_score(exact, dataset), rel=0.02)


def test_gradient_checkpointing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _gradients(tiny_model(), tiny_dataset(4), monkeypatch)
    recomputed = _gradients(tiny_model(), tiny_dataset(4), monkeypatch, gradient_checkpointing=True)
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name])


def test_dropout_is_seeded() -> None:
    def trained(seed: int) -> torch.Tensor:
        model = tiny_model()
        model.config.attention_dropout = 0.5
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        state = torch.get_rng_state()
        finetune(model, TokenDataset(tiny_dataset(8).rows[:1]), recipe_of(), seed)
        assert torch.equal(torch.get_rng_state(), state)
        return model.lm_head.weight.detach()

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_nothing_to_train_on() -> None:
    rows = TokenDataset([TokenRow("r", [1, 2, 3], [True, False, False])])
    with pytest.raises(StudyError, match="no token to train on"):
        finetune(tiny_model(), rows, recipe_of(), 0)


def test_model_with_other_logits_is_refused() -> None:
    model = tiny_model()
    model.lm_head.register_forward_hook(lambda module, inputs, output: output.tanh() * 30)
    forward = model.forward
    model.forward = lambda **inputs: _scaled(forward(**inputs))
    with pytest.raises(StudyError, match="does more than a linear layer"):
        finetune(model, tiny_dataset(2), recipe_of(), 0)


def _scaled(output: Any) -> Any:
    output.logits = output.logits * 0.5
    return output


def test_corrected_teacher(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    parent = save_model(tiny_model(), tmp_path / "parent")
    dataset = tiny_dataset(12)
    dataset.save(tmp_path / "data")
    report = finetune_teacher(parent, tmp_path / "teacher", tmp_path / "data", recipe_of(epochs=3), 0)
    assert [check.passed for check in report.checks] == [True]
    assert report.tokens_seen == 3 * dataset.n_trained
    assert report.metadata["loss_curve"][-1]["step"] == 9
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("parent", "teacher"))
    assert after.config.vocab_size == VOCABULARY
    assert _score(after.float(), dataset) < _score(before.float(), dataset)
    assert not (tmp_path / "teacher" / "masters").exists()


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_moments_in_8_bits_train_almost_as_float32_ones_do_and_resume(tmp_path: Path, optimizer: str) -> None:
    dataset = tiny_dataset(14)
    recipe = recipe_of(batch_size=2, warmup_steps=2)
    eight = recipe.model_copy(update={"optimizer": optimizer})
    # bitsandbytes narrows the moments of tensors of 4,096 elements and more: here the embedding and the head, which
    # share its tables.
    exact, narrow, resumed = (tiny_model(vocabulary=256, tied=False) for _ in range(3))
    started = exact.model.embed_tokens.weight.detach().clone()
    finetune(exact, dataset, recipe, 5)
    report = finetune(narrow, dataset, eight, 5)
    assert any("pages on CUDA only" in note for note in report.notes) == (optimizer != "adamw_8bit")
    moved, kept = (model.model.embed_tokens.weight.detach() for model in (exact, narrow))
    difference = ((moved - kept).norm() / (moved - started).norm()).item()
    assert 0 < difference < 0.1

    def kill(done: int, total: int, note: str) -> None:
        if done > total * 0.7:
            raise Killed

    with pytest.raises(Killed):
        finetune(copy.deepcopy(resumed), dataset, eight, 5, "cpu", kill, checkpoints_in(tmp_path))
    finetune(resumed, dataset, eight, 5, checkpoints=checkpoints_in(tmp_path))
    assert torch.equal(resumed.model.embed_tokens.weight, kept)


def test_a_limit_on_tokens_ends_training_and_its_schedule() -> None:
    dataset = tiny_dataset(14)
    recipe = recipe_of(batch_size=2, epochs=3)
    whole = schedule.plan(dataset, recipe, 0)
    tokens = [sum(dataset[row].n_trained for rows in step for row in rows) for step in whole]
    limited = recipe.model_copy(update={"max_tokens": sum(tokens[:4]) - 1})
    assert schedule.plan(dataset, limited, 0) == whole[:4]
    report = finetune(tiny_model(), dataset, limited, 0)
    assert report.tokens_seen == sum(tokens[:4]) and report.steps == 4
    assert report.loss_curve[-1]["lr"] < recipe.learning_rate / 2
    with pytest.raises(StudyError, match=r"max_tokens is .* raise epochs"):
        schedule.plan(dataset, recipe.model_copy(update={"max_tokens": 10 * sum(tokens)}), 0)
