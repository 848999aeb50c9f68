"""The same computation with one thread and with two: what docs/operations.md promises about it."""

import random
from collections.abc import Iterator

import pytest
import torch

from compression_assets.evaluation.perplexity import score
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.training.finetuning import FinetuneRecipe
from compression_assets.training.loop import train
from compression_assets_tests.tiny_models import tiny_model

WEIGHTS = 1e-6
"""Largest relative difference of trained weights (Frobenius) between numbers of threads."""

LOSSES = 1e-5
"""Largest relative difference of a loss or a perplexity."""

RECIPE = FinetuneRecipe(epochs=2, learning_rate=1e-3, warmup_steps=1, batch_size=2, gradient_accumulation=1)


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(count: int, length: int) -> TokenDataset:
    chance = random.Random(0)
    return TokenDataset(
        [
            TokenRow(str(row), [chance.randrange(256) for _ in range(length)], [True] * length)
            for row in range(count)
        ]
    )


def trained(threads: int) -> tuple[torch.Tensor, list[float], float]:
    """Weights after a few steps, the losses on the way, and the perplexity in the end."""
    torch.set_num_threads(threads)
    model = tiny_model(hidden_size=128, intermediate_size=320)
    report = train(model, rows(8, 64), RECIPE, seed=0)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return weights, [entry["loss"] for entry in report.loss_curve], score(model, rows(4, 64), 2).perplexity


@pytest.mark.usefixtures("_threads_as_before")
def test_the_number_of_threads_changes_next_to_nothing() -> None:
    weights, losses, perplexity = trained(1)
    again, same_losses, same_perplexity = trained(1)
    assert torch.equal(weights, again)
    assert (losses, perplexity) == (same_losses, same_perplexity)
    others, other_losses, other_perplexity = trained(2)
    assert ((others - weights).norm() / weights.norm()).item() <= WEIGHTS
    assert other_losses == pytest.approx(losses, rel=LOSSES)
    assert other_perplexity == pytest.approx(perplexity, rel=LOSSES)
