"""How many GPUs a training has, and which trainings cannot be shared by several. How they share it is in `ranks`."""

from typing import Any

from pydantic import Field

from compression_assets.errors import StudyError
from compression_assets.strict import Strict
from compression_assets.training.schedule import TrainingRecipe

SHARED = 0.8
"""Share of a GPU's speed that it keeps in a training that several share. Assumed: it depends on what joins them."""


class TrainingDevices(Strict):
    """How many GPUs of one machine a step has. Models differ by the rounding of sums only, so none is made again.

    gpus: of every step that trains: each GPU holds a part of masters, gradients and moments, and takes a part of a
        step's rows (FSDP). teacher_gpus: over which the teacher's layers are spread where its logits are written.
        Without CUDA, steps have one process on the CPU.
    """

    gpus: int = Field(default=1, ge=1)
    teacher_gpus: int = Field(default=1, ge=1)


def shared(recipe: TrainingRecipe, gpus: int) -> int:
    """The GPUs of a training that may have so many. StudyError where its recipe cannot be shared by several."""
    if gpus > 1 and recipe.optimizer != "adamw":
        raise StudyError(
            f"optimizer {recipe.optimizer} works on one GPU: write adamw, whose moments are spread over all of them"
        )
    if gpus > 1 and getattr(recipe, "adapter_rank", None):
        raise StudyError(
            "adapter_rank trains on one GPU, and adapters need no more: leave it out, or set gpus: 1"
        )
    return gpus


def shared_speed(gpus: int) -> float:
    """How many times as fast as one GPU they are together."""
    return 1.0 if gpus == 1 else SHARED * gpus


def unshared(config: Any, gpus: int) -> str | None:
    """Why the training of a model of this config.json cannot be shared, in one sentence, or None."""
    from compression_assets.weights import architectures
    from compression_assets.weights.layers import decoder_layers

    if gpus == 1:
        return None
    try:
        decoder_layers(architectures.empty(config))
    except StudyError as error:
        return str(error)
    return None
