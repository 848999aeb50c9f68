"""Plain fine-tuning: after pruning, and of the teacher on the study's own data. The loop itself is in `loop`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from compression_assets.store.reports import Report, StepReport, no_report
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.loop import TrainingReport, train
from compression_assets.training.resuming import Checkpoints, checkpoints_in
from compression_assets.training.schedule import TrainingRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FinetuneRecipe(TrainingRecipe):
    """Cross-entropy on what messages say and on their ends. Defaults: the paper's, after pruning (authors' scripts)."""

    epochs: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=5e-5, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    batch_size: int = Field(default=2, ge=1)
    gradient_accumulation: int = Field(default=4, ge=1)
    max_grad_norm: float = Field(default=0.5, gt=0)


def finetune(
    model: "PreTrainedModel",
    dataset: TokenDataset,
    recipe: FinetuneRecipe,
    seed: int,
    device: str = "cpu",
    report: Report = no_report,
    checkpoints: Checkpoints | None = None,
    devices: Sequence[str] = (),
) -> TrainingReport:
    """Fine-tune a float32 model in place with cross-entropy; devices and errors as `loop.train`."""
    return train(
        model,
        dataset,
        recipe,
        seed=seed,
        device=device,
        devices=devices,
        report=report,
        checkpoints=checkpoints,
    )


def finetune_teacher(
    parent: Path,
    output: Path,
    dataset_directory: Path,
    recipe: FinetuneRecipe,
    seed: int,
    device: str = "cpu",
    report: Report = no_report,
    scratch: Path | None = None,
    devices: Sequence[str] = (),
) -> StepReport:
    """Write the model of `parent`, fine-tuned on its own slice of the data, to `output`.

    Teacher correction as in Minitron (arXiv 2408.11796): a teacher that has not seen the distribution of the
    distillation data teaches it badly. Only published (16 bit) weights are written: nothing trains on from a teacher.
    scratch, devices: as in `StepInputs`.
    """
    from compression_assets.weights.checkpoints import check_finite, load_full_precision, save_full_precision

    dataset = TokenDataset.load(dataset_directory)
    model = load_full_precision(parent)
    checkpoints = checkpoints_in(scratch, model, dataset, recipe, seed, device)
    done = finetune(model, dataset, recipe, seed, device, report, checkpoints, devices)
    save_full_precision(model.cpu(), output, tokenizer_from=parent, masters=False)
    return StepReport((check_finite(output),), done.metadata(), done.tokens_seen, done.peak_bytes)
