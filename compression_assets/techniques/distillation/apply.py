"""Knowledge distillation (KD): a student learns from the stored answers of a teacher. No training loop in here."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from compression_assets.store.reports import Report, StepReport, no_report
from compression_assets.techniques.distillation.recipe import DistillationRecipe
from compression_assets.techniques.quantization.rounding import rounded
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.head_loss import Teacher
from compression_assets.training.loop import Distil, TrainingReport, train
from compression_assets.training.low_rank import low_rank
from compression_assets.training.masters import AsStored
from compression_assets.training.resuming import Checkpoints, checkpoints_in
from compression_assets.training.teacher.teacher_logits import TeacherLogits
from compression_assets.weights.layers import linear_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def distill(
    model: "PreTrainedModel",
    dataset: TokenDataset,
    teacher: Teacher,
    recipe: DistillationRecipe,
    seed: int,
    device: str = "cpu",
    report: Report = no_report,
    checkpoints: Checkpoints | None = None,
) -> TrainingReport:
    """Distil into a float32 model in place, from a store of teacher logits or a live teacher.

    StudyError if the store cannot serve the recipe's temperature or the student's vocabulary; others as `loop.train`.
    """
    if isinstance(teacher, TeacherLogits) and recipe.alpha > 0:
        teacher.require(recipe.temperature, model.get_output_embeddings().weight.shape[0])
    distil = Distil(teacher, recipe.alpha, recipe.temperature)
    adapters = low_rank(model, recipe.adapter_rank, seed) if recipe.adapter_rank else nullcontext()
    as_stored = _as_nf4(model) if recipe.quantization_aware else None
    with adapters:
        return train(
            model,
            dataset,
            recipe,
            seed=seed,
            device=device,
            report=report,
            distil=distil,
            checkpoints=checkpoints,
            as_stored=as_stored,
        )


def _as_nf4(model: "PreTrainedModel") -> AsStored:
    """What the technique Q with its defaults would make of a linear weight; None for every other parameter."""
    covered = linear_weights(model)

    def as_stored(name: str, master: "torch.Tensor") -> "torch.Tensor | None":
        return rounded(master) if name in covered else None

    return as_stored


def distill_step(step: StepInputs) -> StepReport:
    """Distil the parent on the distillation set. StudyError if the teacher logits were made for other data."""
    from compression_assets.weights.checkpoints import (
        check_finite,
        check_size,
        load_full_precision,
        save_full_precision,
    )

    dataset = TokenDataset.load(step.data["distillation_set"])
    teacher = TeacherLogits.open(step.data["teacher_logits"], dataset)
    model = load_full_precision(step.parent)
    checkpoints = checkpoints_in(
        step.scratch, model, dataset, step.recipe, step.seed, step.device, teacher.manifest
    )
    done = distill(model, dataset, teacher, step.recipe, step.seed, step.device, step.report, checkpoints)
    save_full_precision(model.cpu(), step.output, tokenizer_from=step.parent, masters=True)
    metadata = done.metadata() | {
        "teacher": teacher.manifest["teacher"],
        "teacher_coding": teacher.manifest["coding"],
        "temperature": step.recipe.temperature,
        "alpha": step.recipe.alpha,
    }
    return StepReport((check_finite(step.output), check_size(step.output)), metadata, done.tokens_seen)
