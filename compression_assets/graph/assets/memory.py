"""What artifacts are expected to take of a device's memory: the estimates of `memory`, fed from directories on disk."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from compression_assets.graph.assets.artifact import MemoryEstimate
from compression_assets.machine.devices import compute_bytes
from compression_assets.planning.memory import logits_memory, scoring_memory
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL, TEACHER_MODEL
from compression_assets.study.orderings import technique_of
from compression_assets.techniques.finetuning.predict import predict_finetuning
from compression_assets.techniques.prediction import StepContext
from compression_assets.techniques.registry import technique
from compression_assets.training.finetuning import FinetuneRecipe
from compression_assets.training.memory import LIBRARIES, Shapes


def of_step(model: str, token: str, study: Study) -> MemoryEstimate:
    """Of a step applied to the model of an asset."""
    found, recipe = technique(technique_of(token)), study.recipe(token)

    def estimate(inputs: Mapping[str, Path], device: str) -> int | None:
        return found.predict(_config(inputs[model]), recipe, _context(study, device)).memory

    return estimate


def of_correction(recipe: FinetuneRecipe, study: Study) -> MemoryEstimate:
    """Of fine-tuning the base model to be the teacher."""
    return lambda inputs, device: (
        predict_finetuning(_config(inputs[BASE_MODEL]), recipe, _context(study, device)).memory
    )


def of_logits(study: Study) -> MemoryEstimate:
    """Of running the teacher over the distillation set."""
    estimate = partial(
        logits_memory,
        recipe=study.teacher_logits,
        max_length=study.data.max_length,
        gpus=study.training.teacher_gpus,
    )
    return lambda inputs, device: _from_config(inputs[TEACHER_MODEL], estimate, device)


def of_scoring(model: str, study: Study) -> MemoryEstimate:
    """Of measuring the perplexity of the model of an asset."""
    batch_size = study.evaluation.perplexity.batch_size
    estimate = partial(scoring_memory, batch_size=batch_size, max_length=study.data.max_length)
    return lambda inputs, device: _from_config(inputs[model], estimate, device)


def of_text(model: str, max_length: int) -> MemoryEstimate:
    """Of scoring windows of running text, one at a time, whose logits a model's own forward pass makes all at once."""
    estimate = partial(scoring_memory, batch_size=1, max_length=max_length)

    def with_logits(inputs: Mapping[str, Path], device: str) -> int | None:
        shapes, scoring = Shapes.of(_config(inputs[model])), _from_config(inputs[model], estimate, device)
        if shapes is None or scoring is None:
            return None
        return scoring + max_length * shapes.vocabulary * compute_bytes(device)

    return with_logits


def of_measuring(model: str, study: Study) -> MemoryEstimate:
    """Of scoring the model of an asset beside the base."""
    if model == BASE_MODEL:
        return of_scoring(model, study)
    scoring = [of_scoring(one, study) for one in (model, BASE_MODEL)]

    def estimate(inputs: Mapping[str, Path], device: str) -> int | None:
        own, base = (one(inputs, device) for one in scoring)
        return None if own is None or base is None else own + base - LIBRARIES[device.partition(":")[0]]

    return estimate


def _from_config(directory: Path, estimate: Callable[..., int | None], device: str) -> int | None:
    return estimate(_config(directory), device=device, compute_bytes=compute_bytes(device))


def _config(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


def _context(study: Study, device: str) -> StepContext:
    """On CUDA with rows one by one: training that runs out of memory there halves its micro-batch by itself."""
    return StepContext(
        max_length=study.data.max_length,
        device=device.partition(":")[0],
        compute_bytes=compute_bytes(device),
        row_by_row=device != "cpu",
        gpus=1 if device == "cpu" else study.training.gpus,
    )
