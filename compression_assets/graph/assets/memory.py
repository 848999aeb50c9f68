"""What artifacts are expected to take of a device's memory: the estimates of `memory`, fed from directories on disk."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from compression_assets.graph.assets.artifact import MemoryEstimate
from compression_assets.machine.devices import compute_bytes
from compression_assets.planning.memory import logits_memory, scoring_memory, step_memory
from compression_assets.study.model import Study
from compression_assets.study.names import TEACHER_MODEL


def of_step(model: str, recipe: Any, study: Study) -> MemoryEstimate:
    """Of a technique applied to the model of an asset, or of a teacher's correction.

    On CUDA with rows one by one: training that runs out of memory there halves its micro-batch by itself.
    """

    def estimate(inputs: Mapping[str, Path], device: str) -> int | None:
        least = recipe if device == "cpu" else _row_by_row(recipe)
        return _from_config(
            inputs[model], partial(step_memory, recipe=least, max_length=study.data.max_length), device
        )

    return estimate


def of_logits(study: Study) -> MemoryEstimate:
    """Of running the teacher over the distillation set."""
    estimate = partial(logits_memory, recipe=study.teacher_logits, max_length=study.data.max_length)
    return lambda inputs, device: _from_config(inputs[TEACHER_MODEL], estimate, device)


def of_scoring(model: str, study: Study) -> MemoryEstimate:
    """Of measuring the perplexity of the model of an asset."""
    batch_size = study.evaluation.perplexity.batch_size
    estimate = partial(scoring_memory, batch_size=batch_size, max_length=study.data.max_length)
    return lambda inputs, device: _from_config(inputs[model], estimate, device)


def _from_config(directory: Path, estimate: Callable[..., int | None], device: str) -> int | None:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return estimate(config, device=device, compute_bytes=compute_bytes(device))


def _row_by_row(recipe: Any) -> Any:
    changes = {
        name: 1 for name in ("batch_size", "calibration_batch_size") if name in type(recipe).model_fields
    }
    if "finetune" in type(recipe).model_fields:
        changes["finetune"] = _row_by_row(recipe.finetune)
    return recipe.model_copy(update=changes)
