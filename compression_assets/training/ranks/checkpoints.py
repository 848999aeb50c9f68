"""Checkpoints of sharded trainings: every rank writes its shards, and any number of ranks can go on from them.

By torch.distributed.checkpoint, in safetensors; the order of writing is that of `resuming.Checkpoints`.
"""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.training.ranks.job import read_json
from compression_assets.training.resuming import PROGRESS, Checkpoints
from compression_assets.weights.files import to_disk

if TYPE_CHECKING:
    import torch

STATE = ("exp_avg", "exp_avg_sq")


def save(
    kept: Checkpoints,
    step: int,
    parameters: "dict[str, torch.Tensor]",
    optimizer: Any,
    progress: dict[str, Any],
) -> None:
    """Write masters and moments after `step` steps in place of the last checkpoint; every rank calls it."""
    import torch.distributed as dist
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint import save as save_shards

    fresh = kept.directory / f"step-{step:06d}.partial"
    if dist.get_rank() == 0:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    dist.barrier()
    writer = HuggingFaceStorageWriter(str(fresh), save_distributed=True)
    save_shards(_state(parameters, optimizer), storage_writer=writer)
    dist.barrier()
    if dist.get_rank() == 0:
        about = {"identity": kept.identity, "step": step, "progress": progress}
        (fresh / PROGRESS).write_text(json.dumps(about))
        for file in fresh.iterdir():
            to_disk(file)
        shutil.rmtree(fresh.with_suffix(""), ignore_errors=True)  # one of another identity
        os.replace(fresh, fresh.with_suffix(""))
        for old in kept.directory.glob("step-*"):
            if old.name != fresh.stem:
                shutil.rmtree(old)
    dist.barrier()


def load(
    kept: Checkpoints, parameters: "dict[str, torch.Tensor]", optimizer: Any
) -> tuple[int, dict[str, Any]] | None:
    """Take over the newest checkpoint of this run, by however many ranks it was written: (steps done, progress)."""
    import torch
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_shards

    found = _newest(kept)
    if found is None:
        return None
    step, progress = found
    for parameter in parameters.values():
        # torch's fused AdamW counts steps on the device.
        count = torch.tensor(float(step), device=parameter.device)
        optimizer.state[parameter] = {"step": count} | {
            name: torch.zeros_like(parameter.detach()) for name in STATE
        }
    reader = HuggingFaceStorageReader(str(kept.directory / f"step-{step:06d}"))
    load_shards(_state(parameters, optimizer), storage_reader=reader)
    return step, progress


def _newest(kept: Checkpoints) -> tuple[int, dict[str, Any]] | None:
    for path in sorted(kept.directory.glob("step-??????"), reverse=True):
        about = _readable(path / PROGRESS)
        if about.get("identity") == kept.identity:
            return about["step"], about["progress"]
    return None


def _readable(file: Path) -> dict[str, Any]:
    """Empty where power failed before the file was on disk."""
    try:
        return read_json(file)
    except ValueError:
        return {}


def _state(parameters: "dict[str, torch.Tensor]", optimizer: Any) -> "dict[str, torch.Tensor]":
    masters = {f"master.{name}": parameter.detach() for name, parameter in parameters.items()}
    moments = {
        f"{key}.{name}": optimizer.state[parameter][key]
        for name, parameter in parameters.items()
        for key in STATE
    }
    return masters | moments
