"""What a training run does when: its settings, the order of its batches and the learning rate of each step."""

from typing import Literal

from pydantic import Field

from compression_assets.errors import StudyError
from compression_assets.strict import Strict
from compression_assets.text.batches import length_buckets
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.masters import Optimizer


class TrainingRecipe(Strict):
    """AdamW settings of one training run; subclasses set the defaults.

    A step covers batch_size x gradient_accumulation rows; the last step of an epoch may cover fewer. The learning
    rate rises over `warmup_steps` (the first step already has 1/warmup of it), then falls linearly to 0.
    optimizer: moments in float32 (8 bytes a parameter) or in 8 bits by bitsandbytes (2 bytes), the latter paged out to
    the host's memory where CUDA runs short of its own. max_tokens: training ends with the step that reaches so many
    tokens (of content and message ends), the schedule with it, so that two steps can be given the same budget.
    """

    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    batch_size: int = Field(ge=1, description="rows in one forward pass")
    gradient_accumulation: int = Field(ge=1, description="forward passes in one optimiser step")
    max_grad_norm: float = Field(gt=0)
    weight_decay: float = Field(
        default=0.0, ge=0, description="of matrices; norms and biases are never decayed"
    )
    schedule: Literal["linear"] = "linear"
    optimizer: Optimizer = "adamw"
    max_tokens: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool = Field(default=False, description="recompute activations to save memory")


def plan(dataset: TokenDataset, recipe: TrainingRecipe, seed: int) -> list[list[list[int]]]:
    """Steps of forward passes of row indices, in the order of training; rows with nothing to learn are left out."""
    steps = []
    for epoch in range(recipe.epochs):
        batches = length_buckets(dataset, recipe.batch_size, seed * 1_000 + epoch)
        kept = [[row for row in batch if dataset[row].n_trained] for batch in batches]
        kept = [batch for batch in kept if batch]
        size = recipe.gradient_accumulation
        steps += [kept[start : start + size] for start in range(0, len(kept), size)]
    if not steps:
        raise StudyError("the dataset has no token to train on: check its source and max_length.")
    return steps if recipe.max_tokens is None else _within(dataset, steps, recipe.max_tokens)


def _within(dataset: TokenDataset, steps: list[list[list[int]]], max_tokens: int) -> list[list[list[int]]]:
    """The steps up to the one that reaches `max_tokens`. StudyError when all of them together do not."""
    tokens = 0
    for index, step in enumerate(steps):
        tokens += sum(dataset[row].n_trained for rows in step for row in rows)
        if tokens >= max_tokens:
            return steps[: index + 1]
    raise StudyError(
        f"max_tokens is {max_tokens:,}, but all epochs have {tokens:,} tokens to learn: raise epochs, or ask for fewer"
    )


def learning_rate(recipe: TrainingRecipe, step: int, steps: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then linear decay that would reach 0 at step `steps`."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    return recipe.learning_rate * (steps - step) / max(1, steps - recipe.warmup_steps)
