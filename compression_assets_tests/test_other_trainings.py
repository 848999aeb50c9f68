"""Distillation through low-rank adapters, against the same training written out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.apart import low_rank_factors
from compression_assets.techniques.distillation.apply import distill
from compression_assets.techniques.distillation.recipe import DistillationRecipe
from compression_assets.training.low_rank import low_rank
from compression_assets.weights.layers import linear_weights
from compression_assets_tests.training_helpers import (
    Killed,
    checkpoints_in,
    tiny_dataset,
    tiny_model,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("float32")


def recipe(**changes: Any) -> DistillationRecipe:
    """One row after another, alone with cross-entropy."""
    plain = {
        "alpha": 0.0,
        "epochs": 1,
        "learning_rate": 0.02,
        "warmup_steps": 0,
        "batch_size": 12,
        "gradient_accumulation": 1,
        "max_grad_norm": 1e9,
    }
    return DistillationRecipe(**(plain | changes))


def no_teacher() -> Any:
    """With alpha 0 nobody asks it."""
    return None


def cross_entropy(logits: torch.Tensor, row: Any) -> torch.Tensor:
    targets = torch.tensor(row.input_ids[1:])
    counts = torch.tensor(row.trained[1:])
    return torch.nn.functional.cross_entropy(logits[0, :-1][counts], targets[counts], reduction="sum")


def summed_loss(model: Any, data: Any) -> torch.Tensor:
    return torch.stack(
        [cross_entropy(model(torch.tensor([row.input_ids])).logits, row) for row in data]
    ).sum()


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    settings = recipe(batch_size=3, adapter_rank=2)
    whole = tiny_model()
    distill(whole, tiny_dataset(12), no_teacher(), settings, seed=0)

    def kill(done: int, total: int, note: str) -> None:
        if done > total * 0.7:
            raise Killed

    with pytest.raises(Killed):
        distill(
            tiny_model(), tiny_dataset(12), no_teacher(), settings, 0, "cpu", kill, checkpoints_in(tmp_path)
        )
    resumed = tiny_model()
    done = distill(resumed, tiny_dataset(12), no_teacher(), settings, 0, checkpoints=checkpoints_in(tmp_path))
    assert done.notes == ["resumed after step 2"]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_adapters_change_linear_weights_by_their_rank_and_nothing_else(
    compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compute == "bfloat16":
        monkeypatch.setattr("compression_assets.training.loop.compute_dtype", lambda _: torch.bfloat16)
    model, before = tiny_model(), weights_of(tiny_model())
    done = distill(
        model, tiny_dataset(12), no_teacher(), recipe(adapter_rank=3, batch_size=3, epochs=4), seed=0
    )
    assert done.loss_curve[-1]["loss"] < done.loss_curve[0]["loss"]
    covered = linear_weights(tiny_model())
    for name, weight in weights_of(model).items():
        change = (weight - before[name]).double()
        if name not in covered:
            assert not change.any(), name
            continue
        sizes = torch.linalg.svdvals(change)
        assert sizes[2] > 0 and sizes[3] < 1e-5 * sizes[0], name
        left, right = low_rank_factors(change.float(), 3)
        assert (left.double() @ right.double() - change).norm() < 0.01 * change.norm()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {name for name, _ in model.named_parameters()} == before.keys()


def test_one_step_of_adapters_is_that_of_the_product_written_out() -> None:
    """B starts at zero, so A gets no gradient and B that of 2·dW·Aᵀ: AdamW's first step is its sign."""
    data, settings = tiny_dataset(12), recipe(adapter_rank=2, learning_rate=0.01)
    reference, model = tiny_model(), tiny_model()
    summed_loss(reference, data).backward()
    name = "model.layers.1.mlp.up_proj.weight"
    with low_rank(model, 2, seed=0):
        a = model.get_submodule(name.removesuffix(".weight")).parametrizations["weight"][0].a.detach().clone()
    gradient = reference.get_parameter(name).grad
    assert gradient is not None
    b = -0.01 * (2 * gradient @ a.T).sign()
    a_after = a * (1 - 0.01 * settings.weight_decay)

    model = tiny_model()
    distill(model, data, no_teacher(), settings, seed=0)
    change = model.get_parameter(name) - tiny_model().get_parameter(name)
    torch.testing.assert_close(change, 2 * b @ a_after, rtol=1e-3, atol=1e-5)


def test_adapters_without_a_step_leave_every_bit() -> None:
    model, before = tiny_model(), weights_of(tiny_model())
    with low_rank(model, 4, seed=1):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())


def test_small_updates_count_where_weights_are_computed_in_bfloat16() -> None:
    """A sum of bfloat16 numbers would lose every update below half of a weight's last bit."""
    model, name = tiny_model(), "model.layers.0.mlp.up_proj"
    exact = model.get_parameter(f"{name}.weight").detach().clone()
    with low_rank(model, 2, seed=1):
        module = model.get_submodule(name)
        adapter = module.parametrizations["weight"][0]
        adapter.b.data.fill_(1e-4)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        used, update = module.weight.detach(), adapter.update().detach()
        assert update.abs().max() < exact.abs().max() / 512
        assert torch.equal(used, (exact + update).to(torch.bfloat16))
        assert not torch.equal(used, exact.to(torch.bfloat16))
    torch.testing.assert_close(model.get_parameter(f"{name}.weight"), exact + update)


def test_the_best_approximation_of_a_rank() -> None:
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    left, right = low_rank_factors(matrix, 5)
    sizes = torch.linalg.svdvals(matrix.double())
    error = (matrix.double() - left.double() @ right.double()).norm().item()
    assert error == pytest.approx(sizes[5:].square().sum().sqrt().item(), rel=1e-3)
