"""Checkpoints inside a training run, from which it goes on to the same weights bit for bit.

Only the files are here; what is in them is said by `masters` and `loop`.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

STATE, PROGRESS = "state.safetensors", "progress.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read: steps done, tensors by name, and the loop's own progress."""

    step: int
    tensors: "dict[str, torch.Tensor]"
    progress: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """Keep the newest checkpoint of a run in `directory`, made every `every` steps.

    `identity` is a fingerprint of everything that decides the run (parent weights, data, recipe, seed, code):
    a checkpoint of another identity is not resumed from. Whoever owns the run removes the directory when it is done.
    """

    directory: Path
    every: int
    identity: str

    def due(self, done: int, steps: int) -> bool:
        """Whether to save after `done` steps; never after the last."""
        return done % self.every == 0 and done < steps

    def save(self, step: int, tensors: "dict[str, torch.Tensor]", progress: dict[str, Any]) -> None:
        """Write beside the old checkpoint, then take its place."""
        import torch
        from safetensors.torch import save_file

        fresh = self.directory / f"step-{step:06d}.partial"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        generators = {"random.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            generators |= {f"random.cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors | generators).items()}
        save_file(held, fresh / STATE)
        (fresh / PROGRESS).write_text(
            json.dumps({"identity": self.identity, "step": step, "progress": progress})
        )
        shutil.rmtree(fresh.with_suffix(""), ignore_errors=True)  # one of another identity
        os.replace(fresh, fresh.with_suffix(""))
        for old in self.directory.glob("step-*"):
            if old.name != fresh.stem:
                shutil.rmtree(old)

    def load(self, device: str) -> Saved | None:
        """The newest checkpoint of this run, or None; restores the random generators."""
        import torch
        from safetensors.torch import load_file

        for path in sorted(self.directory.glob("step-??????"), reverse=True):
            about = json.loads((path / PROGRESS).read_text())
            if about["identity"] != self.identity:
                continue
            tensors = load_file(path / STATE)
            torch.set_rng_state(tensors.pop("random.cpu"))
            cuda = [tensors.pop(name) for name in sorted(tensors) if name.startswith("random.cuda")]
            if cuda and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(cuda)
            # AdamW keeps its count of steps on the CPU.
            moved = {name: t if name.startswith("step.") else t.to(device) for name, t in tensors.items()}
            return Saved(about["step"], moved, about["progress"])
        return None
