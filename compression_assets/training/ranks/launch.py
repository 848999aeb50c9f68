"""Training a model on several devices: a job for the ranks, torchrun, and the trained weights back in the model."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.store.reports import Report
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.ranks import rank
from compression_assets.training.ranks.job import (
    DATASET,
    FAILURE,
    MODEL,
    REPORT,
    TRAINED,
    Job,
    SavedIn,
    StoredTeacher,
    read_json,
)
from compression_assets.training.resuming import Checkpoints
from compression_assets.training.schedule import TrainingRecipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LAST_LINES = 30
"""Of what the ranks print, kept for an error."""


def train_on_ranks(
    model: "PreTrainedModel",
    dataset: TokenDataset,
    recipe: TrainingRecipe,
    *,
    seed: int,
    devices: Sequence[str],
    dtype: "torch.dtype",
    report: Report,
    teacher: StoredTeacher | None = None,
    checkpoints: Checkpoints | None = None,
) -> dict[str, Any]:
    """Train a float32 model in place, a rank on each of `devices` (all of CUDA, or "cpu" several times).

    The model learns what it would learn in one process, up to the rounding of sums. Returns what rank 0 reports:
    loss_curve, tokens_seen, steps, seconds, padding, resumed_after, peak_bytes (the most that one rank took), notes.

    Where memory runs out the ranks start again, from their last checkpoint, with half the rows in a forward pass.
    StudyError as `loop.train`; RuntimeError, with the last lines printed, when a rank is lost.
    """
    notes: list[str] = []
    kept = None if checkpoints is None else checkpoints.directory / "ranks"
    saved = (
        None
        if checkpoints is None
        else SavedIn(directory=kept, every=checkpoints.every, identity=checkpoints.identity)
    )
    rows_at_once = recipe.batch_size
    with _job_directory(kept) as directory:
        _write_inputs(model, dataset, directory)
        while True:
            job = Job(
                recipe=TrainingRecipe(
                    **{name: getattr(recipe, name) for name in TrainingRecipe.model_fields}
                ),
                seed=seed,
                kind=devices[0].partition(":")[0],
                dtype=str(dtype).removeprefix("torch."),
                rows_at_once=rows_at_once,
                teacher=teacher,
                saved=saved,
            )
            job.write(directory)
            failure = _run(directory, devices, report)
            if "error" in failure:
                raise StudyError(failure["error"])
            if not failure:
                break
            if rows_at_once == 1:
                raise StudyError(
                    f"one row does not fit into the memory of a device ({failure['memory']}): lower max_length, set "
                    "gradient_checkpointing: true, or raise training.gpus in the study."
                )
            rows_at_once = (rows_at_once + 1) // 2
            notes.append(f"out of memory: {rows_at_once} of {recipe.batch_size} rows in a forward pass")
        _take_over(model, directory / TRAINED)
        return read_json(directory / REPORT) | {"notes": notes}


@contextmanager
def _job_directory(kept: Path | None) -> Iterator[Path]:
    """Beside the checkpoints, on a disk that has room for the model; what a killed attempt left there goes."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="compression_ranks_") as made:
            yield Path(made)
        return
    directory = kept / "job.partial"  # which no other host is sent
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _write_inputs(model: "PreTrainedModel", dataset: TokenDataset, directory: Path) -> None:
    from compression_assets.weights.checkpoints import stored_tensors
    from compression_assets.weights.files import write_weights

    write_weights(stored_tensors(model), directory / MODEL)
    model.config.save_pretrained(directory / MODEL)
    dataset.save(directory / DATASET)


def _take_over(model: "PreTrainedModel", trained: Path) -> None:
    import torch

    from compression_assets.weights.checkpoints import stored_tensors
    from compression_assets.weights.files import read_tensors

    own = stored_tensors(model)
    with torch.no_grad():
        for name, tensor in read_tensors(trained):
            own[name].copy_(tensor)


def _run(directory: Path, devices: Sequence[str], report: Report) -> dict[str, str]:
    """Run the ranks to their end: why they gave up, or an empty dict. RuntimeError when they ended otherwise."""
    (directory / FAILURE).unlink(missing_ok=True)
    _leave_devices(devices)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"),
            *(f"--nproc-per-node={len(devices)}", "-m", rank.main.__module__, str(directory)),
        ],
        env=os.environ | _same_code() | _visible(devices),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdin is not None and process.stdout is not None
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        for line in process.stdout:
            if line.startswith(rank.SAYS):
                report(*rank.said(line))
            else:
                last.append(line)
    finally:
        process.stdin.close()  # ranks that still run end by this
        code = process.wait()
    if code == 0:
        return {}
    if failure := read_json(directory / FAILURE):
        return failure
    raise RuntimeError(f"a rank of the training was lost; the last lines printed:\n{''.join(last)}")


def _same_code() -> dict[str, str]:
    """The environment in which ranks import this very package, whatever else is installed."""
    places = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, places))}


def _visible(devices: Sequence[str]) -> dict[str, str]:
    """The environment in which rank N finds the Nth of `devices` as its own."""
    if devices[0] == "cpu":
        return {}
    indices = [int(device.partition(":")[2]) for device in devices]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else None
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[i].strip() if names else str(i) for i in indices)}


def _leave_devices(devices: Sequence[str]) -> None:
    """Give back what this process has kept for itself of a device that the ranks need."""
    if devices[0] == "cpu":
        return
    import torch

    gc.collect()
    torch.cuda.empty_cache()
