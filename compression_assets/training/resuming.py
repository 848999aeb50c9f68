"""Checkpoints inside a training run, from which it goes on to the same weights bit for bit.

Only the files are here; what is in them is said by `masters` and `loop`.
"""

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.store.fingerprints import fingerprint
from compression_assets.weights.files import is_whole, save_tensors, to_disk

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from compression_assets.text.datasets import TokenDataset
    from compression_assets.training.schedule import TrainingRecipe

STATE, PROGRESS = "state.safetensors", "progress.json"
CHECKPOINT_EVERY = 500
"""Optimiser steps. A checkpoint is three float32 copies of the model: seldom enough that writing them is a small part
of a long run, often enough that little of one is lost. A shorter run, such as the demo's, writes none."""

SLOW, SPARING = 5.0, 20.0
"""A checkpoint that takes more than `SLOW` seconds is a twentieth of the time until the next: 500 steps of a 3 B model
are three minutes on a large GPU, and its checkpoint is 19 GB."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: steps done, tensors by name, and the loop's own progress."""

    step: int
    tensors: "dict[str, torch.Tensor]"
    progress: dict[str, Any]


@dataclass
class Checkpoints:
    """Keep the newest checkpoint of a run in `directory`, made every `every` steps.

    `identity` is a fingerprint of everything that decides the run (`run_identity`; the code if the directory outlives
    it): a checkpoint of another identity is not resumed from. Whoever owns the run removes the directory in the end.

    Where saving is slow, it is done less often: the next one waits until `SPARING` times as long has gone by.
    """

    directory: Path
    every: int
    identity: str
    _not_before: float = field(default=0.0, init=False)

    def due(self, done: int, steps: int) -> bool:
        """Whether to save after `done` steps; never after the last."""
        return done % self.every == 0 and done < steps and time.monotonic() >= self._not_before

    def save(self, step: int, tensors: "dict[str, torch.Tensor]", progress: dict[str, Any]) -> None:
        """Write beside the old checkpoint, then take its place."""
        import torch

        started = time.monotonic()
        fresh = self.directory / f"step-{step:06d}.partial"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        generators = {"random.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            # Of the step's device alone: asking the others would take memory of each for a context, and a machine
            # that goes on may have fewer.
            generators["random.cuda"] = torch.cuda.get_rng_state()
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors | generators).items()}
        save_tensors(held, fresh / STATE)
        (fresh / PROGRESS).write_text(
            json.dumps({"identity": self.identity, "step": step, "progress": progress})
        )
        for file in (fresh / STATE, fresh / PROGRESS):
            to_disk(file)
        shutil.rmtree(fresh.with_suffix(""), ignore_errors=True)  # one of another identity
        os.replace(fresh, fresh.with_suffix(""))
        for old in self.directory.glob("step-*"):
            if old.name != fresh.stem:
                shutil.rmtree(old)
        if (took := time.monotonic() - started) > SLOW:
            self._not_before = time.monotonic() + SPARING * took

    def load(self) -> Saved | None:
        """The newest checkpoint of this run, its tensors on the CPU, or None; restores the random generators."""
        import torch
        from safetensors.torch import load_file

        for path in sorted(self.directory.glob("step-??????"), reverse=True):
            about = _read_progress(path / PROGRESS)
            if about.get("identity") != self.identity or not is_whole(path / STATE):
                continue
            tensors = load_file(path / STATE)
            torch.set_rng_state(tensors.pop("random.cpu"))
            cuda = tensors.pop("random.cuda", None)
            if cuda is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(cuda)
            return Saved(about["step"], tensors, about["progress"])
        return None


def _read_progress(file: Path) -> dict[str, Any]:
    """Empty where power failed before the file was on disk."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


def checkpoints_in(
    scratch: Path | None,
    model: "PreTrainedModel",
    dataset: "TokenDataset",
    recipe: "TrainingRecipe",
    seed: int,
    device: str,
    teacher: dict[str, Any] | None = None,
) -> Checkpoints | None:
    """Checkpoints of this run under `scratch`, a directory for one state of the code; None: nothing is kept."""
    if scratch is None:
        return None
    identity = run_identity(model, dataset, recipe, seed, device, teacher)
    return Checkpoints(scratch / "checkpoints", CHECKPOINT_EVERY, identity)


def run_identity(
    model: "PreTrainedModel",
    dataset: "TokenDataset",
    recipe: "TrainingRecipe",
    seed: int,
    device: str,
    teacher: dict[str, Any] | None = None,
) -> str:
    """Fingerprint of what decides the weights that training `model` from here leads to.

    device: only its kind counts, any GPU of a machine may go on. teacher: manifest of a store of teacher logits.
    """
    import torch

    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        weights.update(f"{name} {list(parameter.shape)} ".encode())
        weights.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return fingerprint(
        {
            "weights": weights.hexdigest(),
            "dataset": dataset.digest(),
            "recipe": recipe.model_dump(mode="json"),
            "seed": seed,
            "device": torch.device(device).type,
            "teacher": teacher,
        }
    )
