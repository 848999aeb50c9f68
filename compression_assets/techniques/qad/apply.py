"""Quantization-aware distillation: a quantized student learns with the weights that its file holds.

Float32 masters start at the dequantized weights. Forward and backward passes see the weights as they will be stored,
and gradients go to the masters as if it were they (straight-through estimator: Bengio et al. 2013, arXiv 1308.3432).
After QAD (arXiv 2601.20088).
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.store.reports import Check, StepReport
from compression_assets.techniques.distillation.apply import about_the_loss, distilling_from
from compression_assets.techniques.qad.stored_form import StoredForm, within_bins
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.training.loop import train
from compression_assets.training.resuming import checkpoints_in
from compression_assets.training.teacher.teacher_logits import TeacherLogits
from compression_assets.weights import checkpoints
from compression_assets.weights.files import read_tensors, write_weights
from compression_assets.weights.formats.grid import GridFormat
from compression_assets.weights.stored import StoredWeight

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

UNQUANTIZED = "unquantized"
"""The earlier model that Q made the quantized one of."""
COMPARED_ROWS = 8
"""Conversations of the distillation set on which the written model is compared with the trained one."""
MAX_DIFFERENCE = 1e-3
"""Nats a token between the two: they have the same weights, and the order of sums may differ."""


def qad_step(step: StepInputs) -> StepReport:
    """Distil the quantized parent on the distillation set into a model of the same number format and size.

    Metadata: "layers" with each layer's share of weights that have another code than before; their mean
    "weights_changed". StudyError when the parent is in full precision or the teacher logits were made for other data.
    """
    import torch

    if not checkpoints.is_quantized(step.parent):
        raise StudyError(
            f"{step.parent} is in full precision, and QAD works on a quantized model; put a Q before it"
        )
    dataset = TokenDataset.load(step.data["distillation_set"])
    teacher = TeacherLogits.open(step.data["teacher_logits"], dataset)
    model = checkpoints.load_for_scoring(step.parent, "cpu", torch.float32)
    before = {weight.name: weight for weight in checkpoints.quantized_weights(step.parent)}
    if UNQUANTIZED in step.models:
        _start_in_bins(model, before, step.models[UNQUANTIZED])
    kept = checkpoints_in(step.scratch, model, dataset, step.recipe, step.seed, step.device, teacher.manifest)
    stored = StoredForm(before, step.recipe.scales, step.device)
    rows = [row for row in dataset if row.n_predicted][:COMPARED_ROWS]
    trained: dict[str, Any] = {}

    def measure(computing: "PreTrainedModel") -> None:
        trained.update(dtype=computing.dtype, loss=mean_loss(computing, rows))

    done = train(
        model,
        dataset,
        step.recipe,
        seed=step.seed,
        device=step.device,
        report=step.report,
        distil=distilling_from(teacher, step.recipe, model),
        checkpoints=kept,
        as_stored=stored,
        at_end=measure,
    )
    _write(model, stored, step)
    layers = _weights_changed(before, step.output)
    changed = math.fsum(layer["weights_changed"] for layer in layers) / len(layers)
    metadata = done.metadata() | about_the_loss(teacher, step.recipe)
    return StepReport(
        checks=(
            checkpoints.check_finite(step.output),
            checkpoints.check_size(step.output),
            _check_as_trained(step, rows, **trained),
        ),
        metadata=metadata
        | {
            "training_notes": [*done.notes, *_too_small(step.recipe.learning_rate, changed)],
            "layers": layers,
            "weights_changed": changed,
            "tensor_bytes": checkpoints.tensor_bytes(step.output),
        },
        tokens_seen=done.tokens_seen,
    )


def _start_in_bins(model: "PreTrainedModel", before: Mapping[str, StoredWeight], unquantized: Path) -> None:
    """Give a model the weights that Q rounded, in the bins of the codes that it chose."""
    parameters = dict(model.named_parameters())
    for name, weight in read_tensors(checkpoints.masters_or_published(unquantized)):
        if name in before:
            parameters[name].data.copy_(within_bins(weight, before[name]))


def mean_loss(model: "PreTrainedModel", rows: Sequence[TokenRow]) -> float:
    """Cross-entropy in nats a content token, one row after another through the model's own forward pass."""
    import torch

    total, training = 0.0, model.training
    model.eval()
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.input_ids], device=model.device)
            content = torch.tensor(row.content[1:], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1][content].float()
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:][content], reduction="sum").item()
    model.train(training)
    return total / sum(row.n_predicted for row in rows)


def _write(model: "PreTrainedModel", stored: StoredForm, step: StepInputs) -> None:
    """A model directory of the masters' stored form, one parameter after another."""
    tensors: dict[str, torch.Tensor] = {}
    for name, master in checkpoints.stored_tensors(model).items():
        tensors |= stored.tensors(name, master)
    write_weights(tensors, step.output)
    shutil.copyfile(step.parent / "config.json", step.output / "config.json")
    checkpoints.copy_generation_config(step.parent, step.output)
    checkpoints.copy_tokenizer(step.parent, step.output)


def _check_as_trained(step: StepInputs, rows: Sequence[TokenRow], dtype: "torch.dtype", loss: float) -> Check:
    """The written model has the perplexity that the trained one had with the weights that it computed with."""
    written = mean_loss(checkpoints.load_for_scoring(step.output, step.device, dtype), rows)
    return Check(
        "as_trained",
        abs(written - loss) <= MAX_DIFFERENCE,
        f"perplexity {math.exp(written):.4f} as written and {math.exp(loss):.4f} as trained, on "
        f"{sum(row.n_predicted for row in rows):,} tokens of the distillation set",
    )


def _weights_changed(before: Mapping[str, StoredWeight], after: Path) -> list[dict[str, Any]]:
    """Per layer the share of weights with another code than before; without a grid, with another stored value."""
    return [
        {
            "layer": new.name.removesuffix(".weight"),
            "weights_changed": (_values(before[new.name]) != _values(new)).double().mean().item(),
        }
        for new in checkpoints.quantized_weights(after)
    ]


def _values(weight: StoredWeight) -> "torch.Tensor":
    if isinstance(weight.format, GridFormat):
        return weight.format.codes(weight.parts)
    return weight.dequantized()


def _too_small(learning_rate: float, changed: float) -> list[str]:
    if changed >= 1e-3:
        return []
    return [
        f"a share of {changed:.1g} of the quantized weights changed: learning_rate {learning_rate} moves hardly any of "
        "them by half a bin; raise it, or train longer"
    ]
