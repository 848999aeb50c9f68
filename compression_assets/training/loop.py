"""The training loop of every step that trains: distillation, post-pruning and plain fine-tuning.

Here are accumulation and the watch over divergence. The order of batches and the learning rate are in `schedule`, the
loss's mathematics in `head_loss`, the optimiser step in `masters`, saving and resuming in `resuming`.

transformers' Trainer and accelerate were looked at first. They cannot average over the trained tokens of an
accumulated step with a loss that is computed from hidden states and hands back its own gradients, nor keep float32
masters beside bfloat16 weights on a CPU, so the loop is written here.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.machine.precision import compute_dtype
from compression_assets.store.reports import Report, no_report
from compression_assets.text.batches import collate
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.head_loss import LossWeights, Teacher, head_loss
from compression_assets.training.kernels import fast_kernels
from compression_assets.training.masters import AsStored, MasterWeights
from compression_assets.training.resuming import Checkpoints
from compression_assets.training.schedule import TrainingRecipe, learning_rate, plan
from compression_assets.training.watch import halved, out_of_memory, require_finite, require_no_explosion
from compression_assets.weights.logits import body_and_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Distil:
    """Distil from `teacher`: the loss is (1 - alpha) * CE + alpha * T^2 * KL(teacher || student)."""

    teacher: Teacher
    alpha: float
    temperature: float


@dataclass(frozen=True)
class TrainingReport:
    """What a run did. JSON-safe: no value is NaN or infinite.

    loss_curve: one entry a step with step, loss, ce, kl (nats a token; kl only when distilling), lr, grad_norm.
    tokens_seen: tokens of content and message ends, over all epochs. padding: share of padding in the tokens computed.
    peak_bytes: the most that a process of its own took of its device; 0 where it had none.
    """

    loss_curve: list[dict[str, float]]
    tokens_seen: int
    steps: int
    seconds: float
    padding: float
    notes: list[str] = field(default_factory=list)
    peak_bytes: int = 0

    def metadata(self) -> dict[str, Any]:
        """For a StepReport."""
        return {
            "loss_curve": self.loss_curve,
            "training_steps": self.steps,
            "training_seconds": round(self.seconds, 2),
            "training_tokens_per_second": round(self.tokens_seen / self.seconds, 1) if self.seconds else 0.0,
            "training_padding": round(self.padding, 4),
            "training_notes": self.notes,
        }


def train(
    model: "PreTrainedModel",
    dataset: TokenDataset,
    recipe: TrainingRecipe,
    *,
    seed: int,
    device: str = "cpu",
    devices: Sequence[str] = (),
    report: Report = no_report,
    distil: Distil | None = None,
    checkpoints: Checkpoints | None = None,
    as_stored: AsStored | None = None,
    at_end: Callable[["PreTrainedModel"], None] | None = None,
) -> TrainingReport:
    """Train a float32 causal language model in place; it comes back in float32.

    It learns each message's content and the tokens that end it: left out, their probability would fall everywhere, and
    the model would not stop. The loss of a step is the mean over all these tokens of its rows, however they are split
    into forward passes. Same seed, same device, same weights: bit for bit on a CPU. as_stored: the weights that forward
    and backward passes compute with, see `MasterWeights`. at_end: called with the model while it still has
    these weights. devices: where it has several, a process on each of them takes a share of the model and of the rows
    (`training.ranks`); that changes the model by the rounding of sums only.

    When memory runs out in a step, its forward passes take half the rows from there on and there are twice as many:
    the gradient stays the same to rounding, and a note says so.
    StudyError when there is nothing to train on, when a loss or gradient is not finite, when the loss explodes
    (`watch.require_no_explosion`), or when not even one row fits into memory.
    """
    import torch

    if len(devices) > 1:
        assert as_stored is None and at_end is None, "a training of stored weights has one device"
        return _on_ranks(model, dataset, recipe, seed, devices, report, distil, checkpoints)
    steps = plan(dataset, recipe, seed)
    run = _Run(model.to(device), dataset, recipe, distil, device, len(steps), as_stored)
    total = sum(dataset[row].n_trained for step in steps for rows in step for row in rows)
    longest = max(len(row.input_ids) for row in dataset)
    with (
        torch.random.fork_rng([] if torch.device(device).type == "cpu" else [device]),
        fast_kernels(model, device, longest, compute_dtype(device), total) as run.compiled,
    ):
        torch.manual_seed(seed)
        first = run.resume(checkpoints)
        for index in range(first, len(steps)):
            run.step(index, steps[index])
            report(run.tokens_seen, total, f"loss {run.curve[-1]['loss']:.2f}")
            if checkpoints is not None and checkpoints.due(index + 1, len(steps)):
                checkpoints.save(index + 1, run.masters.state(), run.progress())
    if at_end is not None:
        at_end(model)
    run.finish()
    return TrainingReport(
        loss_curve=run.curve,
        tokens_seen=run.tokens_seen,
        steps=len(steps),
        seconds=run.seconds(),
        padding=run.padding(),
        notes=_notes(recipe, len(steps), first, device)
        + (["layers and loss by torch.compile"] if run.compiled else [])
        + run.notes,
    )


def _on_ranks(
    model: "PreTrainedModel",
    dataset: TokenDataset,
    recipe: TrainingRecipe,
    seed: int,
    devices: Sequence[str],
    report: Report,
    distil: Distil | None,
    checkpoints: Checkpoints | None,
) -> TrainingReport:
    from compression_assets.training.ranks.job import StoredTeacher
    from compression_assets.training.ranks.launch import train_on_ranks

    teacher = None
    if distil is not None:
        store: Any = distil.teacher
        teacher = StoredTeacher(directory=store.directory, alpha=distil.alpha, temperature=distil.temperature)
    done = train_on_ranks(
        model.cpu(),
        dataset,
        recipe,
        seed=seed,
        devices=devices,
        dtype=compute_dtype(devices[0]),
        report=report,
        teacher=teacher,
        checkpoints=checkpoints,
    )
    notes = _notes(recipe, done["steps"], done.pop("resumed_after"), devices[0]) + done.pop("notes")
    return TrainingReport(**done, notes=[*notes, f"shared by {len(devices)} devices"])


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        model: "PreTrainedModel",
        dataset: TokenDataset,
        recipe: TrainingRecipe,
        distil: Distil | None,
        device: str,
        steps: int,
        as_stored: AsStored | None = None,
    ) -> None:
        self.model, self.dataset, self.recipe, self.distil, self.device = (
            model,
            dataset,
            recipe,
            distil,
            device,
        )
        self.steps = steps
        self.body, self.head = body_and_head(model)
        self.masters = MasterWeights(
            model,
            compute_dtype(device),
            recipe.learning_rate,
            recipe.weight_decay,
            recipe.optimizer,
            as_stored,
        )
        model.train()
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.curve: list[dict[str, float]] = []
        self.tokens_seen = self.computed = self.real = 0
        self.compiled = False
        self.rows_at_once, self.notes = recipe.batch_size, list[str]()
        self.started, self.earlier = time.perf_counter(), 0.0

    def step(self, index: int, batches: list[list[int]]) -> None:
        """One optimiser step over some forward passes."""
        tokens = sum(self.dataset[row].n_trained for rows in batches for row in rows)
        weights = LossWeights(tokens)
        if self.distil is not None:
            weights = LossWeights(tokens, self.distil.alpha, self.distil.temperature)
        loss, ce, kl = self._gradients(index, batches, weights)
        lr = learning_rate(self.recipe, index, self.steps)
        require_finite(self.recipe, index, self.steps, "loss", loss)
        norm = self.masters.step(lr, self.recipe.max_grad_norm)
        require_finite(self.recipe, index, self.steps, "gradient norm", norm)
        entry = {"step": index + 1, "loss": loss, "ce": ce / tokens, "lr": lr, "grad_norm": norm}
        if self.distil is not None:
            entry["kl"] = kl / tokens
        self.curve.append(entry)
        self.tokens_seen += tokens
        require_no_explosion(self.recipe, self.curve, self.steps)

    def _gradients(
        self, index: int, batches: list[list[int]], weights: LossWeights
    ) -> tuple[float, float, float]:
        """Loss and sums of CE and KL of a step, its gradients in the masters; fewer rows at once if memory runs out."""
        while True:
            passes = halved(batches, self.rows_at_once)
            counted = self.computed, self.real
            with out_of_memory() as failed:
                sums = [self._forward_backward(rows, weights) for rows in passes]
                loss, ce, kl = (math.fsum(part) for part in zip(*sums, strict=True))
                return loss, ce, kl
            self.masters.drop_gradients()
            self.computed, self.real = counted
            most = max(len(rows) for rows in passes)
            if most == 1:
                raise StudyError(
                    f"one row of up to {self._longest(batches)} tokens does not fit into the memory of {self.device} "
                    f"({failed.reason}): lower max_length, or set gradient_checkpointing: true in the study."
                )
            self.rows_at_once = (most + 1) // 2
            self.notes.append(
                f"out of memory at step {index + 1}: {self.rows_at_once} of {self.recipe.batch_size} rows in a forward "
                "pass from there on, the same rows in a step"
            )

    def _longest(self, batches: list[list[int]]) -> int:
        return max(len(self.dataset[row].input_ids) for rows in batches for row in rows)

    def _forward_backward(self, rows: list[int], weights: LossWeights) -> tuple[float, float, float]:
        """Loss share and sums of CE and KL of one forward pass; gradients are added to the masters'."""
        batch = collate([self.dataset[row] for row in rows], pad_id=0, trained=True)
        self.computed += batch.input_ids.numel()
        self.real += int(batch.attention_mask.sum())
        # Both here, where nothing has to wait for a GPU to count what is true.
        places, ids = batch.predicts.flatten().nonzero()[:, 0], batch.targets()
        # No attention mask: rows are padded on the right, so causal attention never lets a real token see padding.
        states = self.body(input_ids=batch.input_ids.to(self.device), use_cache=False).last_hidden_state
        targets = None
        if self.distil is not None and self.distil.alpha > 0:
            vocabulary = self.head.weight.shape[0]
            # Read while a GPU computes the states.
            targets = self.distil.teacher.batch(rows, self.distil.temperature, vocabulary, self.device)
        hidden = states.flatten(0, 1)[places.to(self.device)]
        result = head_loss(
            hidden.detach(),
            self.head.weight.detach(),
            None if self.head.bias is None else self.head.bias.detach(),
            ids.to(self.device),
            weights,
            targets,
            self.masters.gradient(self.head.weight),
            None if self.head.bias is None else self.masters.gradient(self.head.bias),
            compiled=self.compiled,
        )
        hidden.backward(result.d_hidden)
        return float(result.loss), float(result.ce_sum), float(result.kl_sum)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint needs besides tensors."""
        return {
            "curve": self.curve,
            "tokens_seen": self.tokens_seen,
            "computed": self.computed,
            "real": self.real,
            "earlier": self.seconds(),
            "rows_at_once": self.rows_at_once,
            "notes": self.notes,
        }

    def resume(self, checkpoints: Checkpoints | None) -> int:
        """Take over the newest checkpoint, if there is one; returns how many steps are done."""
        saved = None if checkpoints is None else checkpoints.load()
        if saved is None:
            return 0
        self.masters.load_state(saved.tensors)
        for name, value in saved.progress.items():
            setattr(self, name, value)
        return saved.step

    def padding(self) -> float:
        """Share of padding in the tokens computed."""
        return 1 - self.real / self.computed if self.computed else 0.0

    def seconds(self) -> float:
        """Spent so far, up to its checkpoint by an attempt that was resumed."""
        return self.earlier + time.perf_counter() - self.started

    def finish(self) -> None:
        """Give the model its float32 weights."""
        if self.recipe.gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
        self.masters.masters_to(self.model)
        self.model.eval()


def _notes(recipe: TrainingRecipe, steps: int, first: int, device: str) -> list[str]:
    notes = []
    if recipe.optimizer.startswith("paged") and not device.startswith("cuda"):
        notes.append(f"{recipe.optimizer} pages on CUDA only: its moments stayed in memory")
    if recipe.warmup_steps >= steps:
        notes.append(
            f"warm-up of {recipe.warmup_steps} steps, training of {steps}: learning_rate was never reached"
        )
    if first:
        notes.append(f"resumed after step {first}")
    return notes
