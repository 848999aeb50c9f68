"""What each rank of a training runs: `python -m torch.distributed.run … -m compression_assets.training.ranks.rank JOB`.

One line on standard output for each report of rank 0 (`launch` reads them). Standard input is a pipe that the step
holds open: when it ends the step is gone, and so is the rank.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from itertools import chain
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.machine.devices import peak_bytes, reset_peak
from compression_assets.machine.lease import computing_on
from compression_assets.machine.runtime import prepare_process
from compression_assets.text.batches import collate
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.head_loss import LossWeights
from compression_assets.training.kernels import fast_kernels
from compression_assets.training.ranks import checkpoints
from compression_assets.training.ranks.job import DATASET, FAILURE, MODEL, REPORT, TRAINED, Job
from compression_assets.training.ranks.sharding import sharded_student, whole
from compression_assets.training.schedule import learning_rate, plan
from compression_assets.training.teacher.teacher_logits import TeacherLogits
from compression_assets.training.watch import out_of_memory, require_finite, require_no_explosion

SAYS = "compression_assets.training: "
"""Begins a line that is a report."""


def said(line: str) -> tuple[int, int, str]:
    """The report that a line is: done, total and a note."""
    done, total, note = json.loads(line.removeprefix(SAYS))
    return done, total, note


def main(directory: Path) -> None:
    """Train what the job in `directory` asks for, as the rank that torchrun's environment says."""
    threading.Thread(target=_end_with_the_step, daemon=True).start()
    prepare_process()
    import torch
    import torch.distributed as dist

    job, local = Job.read(directory), int(os.environ["LOCAL_RANK"])
    device = f"cuda:{local}" if job.kind == "cuda" else "cpu"
    if job.kind == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=torch.device(device))
    else:
        dist.init_process_group("gloo")
    try:
        with computing_on(device):
            _Rank(job, directory, device).train()
    except StudyError as error:
        _give_up(directory, error=str(error))
    dist.destroy_process_group()


class _Rank:
    """The state of one rank in one training."""

    def __init__(self, job: Job, directory: Path, device: str) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        from compression_assets.weights.checkpoints import load_full_precision

        self.job, self.directory, self.device = job, directory, device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.dataset = TokenDataset.load(directory / DATASET)
        self.teacher = TeacherLogits.open(job.teacher.directory, self.dataset) if job.teacher else None
        self.dtype: torch.dtype = getattr(torch, job.dtype)
        reset_peak(device)
        self.model = load_full_precision(directory / MODEL)
        self.student = sharded_student(self.model, init_device_mesh(job.kind, (self.world,)), self.dtype)
        self.model.train()
        if job.recipe.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.parameters = dict(self.model.named_parameters())
        matrices = [p for p in self.parameters.values() if p.ndim > 1]
        vectors = [p for p in self.parameters.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": job.recipe.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=job.recipe.learning_rate,
            fused=True,
        )
        self.curve: list[dict[str, float]] = []
        self.tokens_seen = self.computed = self.real = 0
        self.started, self.earlier = time.perf_counter(), 0.0

    def train(self) -> None:
        import torch

        steps = [list(chain(*step)) for step in plan(self.dataset, self.job.recipe, self.job.seed)]
        total = sum(self.dataset[row].n_trained for rows in steps for row in rows)
        longest = max(len(row.input_ids) for row in self.dataset)
        kept = self.job.saved.checkpoints() if self.job.saved else None
        first = self._resume(kept)
        with fast_kernels(self.model, self.device, longest, self.dtype):
            for index in range(first, len(steps)):
                # Dropout of a step is another on each rank, and the same after a resumption.
                torch.manual_seed((self.job.seed * 1_000_003 + index) * self.world + self.rank)
                self._step(index, len(steps), steps[index])
                self._say(self.tokens_seen, total, f"loss {self.curve[-1]['loss']:.2f}")
                if kept is not None and kept.due(index + 1, len(steps)):
                    progress = self._progress()
                    checkpoints.save(kept, index + 1, self.parameters, self.optimizer, progress)
        self._leave(len(steps), first)

    def _step(self, index: int, steps: int, rows: list[int]) -> None:
        """One optimiser step over some rows, each on one of the ranks."""
        import torch
        import torch.distributed as dist

        recipe = self.job.recipe
        tokens = sum(self.dataset[row].n_trained for row in rows)
        weights = LossWeights(tokens)
        if self.job.teacher is not None:
            weights = LossWeights(tokens, self.job.teacher.alpha, self.job.teacher.temperature)
        sums = torch.zeros(3, dtype=torch.float64)
        with out_of_memory() as failed:
            for own, counted in self._passes(rows):
                sums += self._forward_backward(own, weights, counted)
        if failed.reason:
            _give_up(self.directory, memory=failed.reason)
        sums = sums.to(self.device)
        dist.all_reduce(sums)
        loss, ce, kl = sums.tolist()
        rate = learning_rate(recipe, index, steps)
        require_finite(recipe, index, steps, "loss", loss)
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), recipe.max_grad_norm)
        norm = float(whole(norm))
        require_finite(recipe, index, steps, "gradient norm", norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        entry = {"step": index + 1, "loss": loss, "ce": ce / tokens, "lr": rate, "grad_norm": norm}
        if self.job.teacher is not None:
            entry["kl"] = kl / tokens
        self.curve.append(entry)
        self.tokens_seen += tokens
        require_no_explosion(recipe, self.curve, steps)

    def _passes(self, rows: list[int]) -> list[tuple[list[int], bool]]:
        """This rank's forward passes of a step, and whether a pass counts.

        All ranks have as many, since each takes part in gathering weights: one without rows of its own left runs the
        step's shortest row for nothing. Rows are dealt out by length, so that ranks have as much to do as each other.
        """
        longest_first = sorted(rows, key=lambda row: -len(self.dataset[row].input_ids))
        own, size = longest_first[self.rank :: self.world], self.job.rows_at_once
        passes = [(own[start : start + size], True) for start in range(0, len(own), size)]
        most = math.ceil(math.ceil(len(rows) / self.world) / size)
        return passes + [(longest_first[-1:], False)] * (most - len(passes))

    def _forward_backward(self, rows: list[int], weights: LossWeights, counted: bool) -> Any:
        """[loss share, sum of CE, sum of KL] of one forward pass (float64, on the CPU); gradients are added up."""
        import torch

        batch = collate([self.dataset[row] for row in rows], pad_id=0, trained=True)
        self.computed += batch.input_ids.numel()
        self.real += int(batch.attention_mask.sum()) * counted
        targets = None
        if self.teacher is not None and weights.alpha > 0:
            vocabulary = self.model.config.vocab_size
            targets = self.teacher.batch(rows, weights.temperature, vocabulary, self.device)
        loss, ce, kl = self.student(batch.to(self.device), weights, targets)
        (loss if counted else loss * 0).backward()
        return torch.stack((loss.detach(), ce, kl)).double().cpu() * counted

    def _progress(self) -> dict[str, Any]:
        """What a checkpoint needs besides tensors; one rank's counts stand for all."""
        return {
            "curve": self.curve,
            "tokens_seen": self.tokens_seen,
            "computed": self.computed,
            "real": self.real,
            "earlier": self._seconds(),
        }

    def _resume(self, kept: Any) -> int:
        found = None if kept is None else checkpoints.load(kept, self.parameters, self.optimizer)
        if found is None:
            return 0
        step, progress = found
        for name, value in progress.items():
            setattr(self, name, value)
        return step

    def _seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.started

    def _leave(self, steps: int, first: int) -> None:
        """The trained weights and a report, gathered by all ranks and written by the first."""
        import torch
        import torch.distributed as dist

        from compression_assets.weights.checkpoints import stored_tensors
        from compression_assets.weights.files import write_weights

        peak = torch.tensor(float(peak_bytes(self.device)), dtype=torch.float64, device=self.device)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        tensors = {}
        for name, tensor in stored_tensors(self.model).items():
            gathered = whole(tensor.detach())
            if self.rank == 0:
                tensors[name] = gathered.cpu()
        if self.rank == 0:
            write_weights(tensors, self.directory / TRAINED)
            about = {
                "loss_curve": self.curve,
                "tokens_seen": self.tokens_seen,
                "steps": steps,
                "seconds": self._seconds(),
                "padding": 1 - self.real / self.computed,
                "resumed_after": first,
                "peak_bytes": int(peak),
            }
            (self.directory / REPORT).write_text(json.dumps(about))

    def _say(self, done: int, total: int, note: str) -> None:
        if self.rank == 0:
            print(SAYS + json.dumps([done, total, note]), flush=True)


def _give_up(directory: Path, **reason: str) -> None:
    """End this rank, and with it the training: others would wait for it in the next sum."""
    partial = directory / f"{FAILURE}.{os.getpid()}"
    partial.write_text(json.dumps(reason))
    os.replace(partial, directory / FAILURE)
    os._exit(1)  # NCCL's own ending waits for the others


def _end_with_the_step() -> None:
    # Not through sys.stdin, whose lock an ending interpreter waits for.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
