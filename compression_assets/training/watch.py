"""What can go wrong while training and is noticed: losses that are no numbers or explode, and memory that runs out.

What is done about it is up to `loop`.
"""

import gc
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    from compression_assets.training.schedule import TrainingRecipe

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the messages of a CPU's allocator, of CUDA and Triton, and of cuBLAS's handles."""

EXPLOSION_FACTOR = 3.0
EXPLOSION_MARGIN = 1.0
EXPLOSION_STEPS = 5


def require_finite(recipe: "TrainingRecipe", index: int, steps: int, what: str, value: float) -> None:
    """StudyError naming the step (from 0) if a loss or gradient norm is not finite."""
    if not math.isfinite(value):
        raise StudyError(
            f"training diverged at step {index + 1} of {steps}: the {what} is {value}; lower "
            f"learning_rate (now {recipe.learning_rate}) or raise warmup_steps in the study and run it again."
        )


def require_no_explosion(recipe: "TrainingRecipe", curve: list[dict[str, float]], steps: int) -> None:
    """StudyError naming the step if the loss has exploded.

    That is above `EXPLOSION_FACTOR` times the median of the first `EXPLOSION_STEPS` steps and at least
    `EXPLOSION_MARGIN` nats above it, `EXPLOSION_STEPS` steps in a row.
    """
    losses = [entry["loss"] for entry in curve]
    if len(losses) < 2 * EXPLOSION_STEPS:
        return
    usual = statistics.median(losses[:EXPLOSION_STEPS])
    limit = max(EXPLOSION_FACTOR * usual, usual + EXPLOSION_MARGIN)
    if min(losses[-EXPLOSION_STEPS:]) > limit:
        raise StudyError(
            f"training diverged at step {len(losses)} of {steps}: the loss has been above {limit:.2f} for "
            f"{EXPLOSION_STEPS} steps after starting at {usual:.2f}; lower learning_rate "
            f"(now {recipe.learning_rate}) or max_grad_norm in the study and run it again."
        )


@dataclass
class Failure:
    """What `out_of_memory` caught; empty if nothing."""

    reason: str = ""


@contextmanager
def out_of_memory() -> Iterator[Failure]:
    """Catch an error of an allocator, and free what the failed block held; other errors pass."""
    import torch

    failure = Failure()
    try:
        yield failure
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # What takes memory outside of torch's CUDA allocator raises a plain RuntimeError.
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        failure.reason = (str(error).strip() or "out of memory").splitlines()[0][:200]
    if failure.reason:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def halved(batches: list[list[int]], rows_at_once: int) -> list[list[int]]:
    """Forward passes of at most `rows_at_once` rows, the same rows in the same order."""
    return [
        rows[start : start + rows_at_once] for rows in batches for start in range(0, len(rows), rows_at_once)
    ]
