"""How many bytes the teacher's run and scoring need at their peak, from config.json's shapes alone.

`plan` shows these figures, the device lease holds them against what is free. They are estimates
on the high side; a step that is a quarter below its estimate is as expected.
"""

from collections.abc import Mapping
from typing import Any

from compression_assets.training.memory import LIBRARIES, Shapes, forward_memory
from compression_assets.training.teacher.shards import TeacherLogitsRecipe

SCORED_HEAD_ROWS = 1024
"""Positions whose logits are held at once where perplexity is measured."""


def logits_memory(
    config: Mapping[str, Any],
    recipe: TeacherLogitsRecipe,
    *,
    max_length: int,
    device: str = "cpu",
    compute_bytes: int = 2,
    gpus: int = 1,
) -> int | None:
    """Peak bytes of running the teacher over the distillation set. config: the teacher's.

    gpus: over which its layers are spread, on CUDA; the bytes are those of one.
    """
    shapes = Shapes.of(config)
    if shapes is None:
        return None
    kind = device.partition(":")[0]
    weight_bytes = 1 if recipe.load_in_8bit and kind == "cuda" else compute_bytes
    entries = {"dense": 2 * shapes.vocabulary, "hidden": 2 * shapes.hidden}.get(recipe.coding, 8 * recipe.k)
    shard = recipe.rows_per_shard * max_length * entries
    forward = forward_memory(shapes, recipe.batch_size * max_length, max_length, compute_bytes)
    # Only the CPU holds the shard that is being gathered, twice while it is put in order.
    held = 2 * shard if kind == "cpu" else 0
    encoding = 128 * shapes.vocabulary * 12
    weights = weight_bytes * shapes.parameters // (gpus if kind == "cuda" else 1)
    return LIBRARIES[kind] + weights + forward + held + encoding


def scoring_memory(
    config: Mapping[str, Any],
    *,
    batch_size: int,
    max_length: int,
    device: str = "cpu",
    compute_bytes: int = 2,
) -> int | None:
    """Peak bytes of measuring a model's perplexity."""
    shapes = Shapes.of(config)
    if shapes is None:
        return None
    kind = device.partition(":")[0]
    tokens = batch_size * max_length
    # Logits in the compute dtype, in float32, and their log-softmax.
    head = min(SCORED_HEAD_ROWS, tokens) * shapes.vocabulary * (compute_bytes + 8)
    weights = compute_bytes * shapes.parameters
    return LIBRARIES[kind] + weights + forward_memory(shapes, tokens, max_length, compute_bytes) + head
