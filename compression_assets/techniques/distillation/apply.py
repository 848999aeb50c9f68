"""Knowledge distillation (KD): a student learns from the stored answers of a teacher."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from compression_assets.store.reports import Report, StepReport, no_report
from compression_assets.techniques.distillation.recipe import DistillationRecipe, TeacherRecipe
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.head_loss import Teacher
from compression_assets.training.loop import Distil, TrainingReport, train
from compression_assets.training.low_rank import low_rank
from compression_assets.training.resuming import Checkpoints, checkpoints_in
from compression_assets.training.teacher.teacher_logits import TeacherLogits

if TYPE_CHECKING:
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
    devices: Sequence[str] = (),
) -> TrainingReport:
    """Distil into a float32 model in place, from a store of teacher logits or a live teacher.

    devices: as `loop.train`; of several only with a store, and without adapters.
    StudyError if the store cannot serve the recipe's temperature or the student's vocabulary; others as `loop.train`.
    """
    distil = distilling_from(teacher, recipe, model)
    adapters = low_rank(model, recipe.adapter_rank, seed) if recipe.adapter_rank else nullcontext()
    with adapters:
        return train(
            model,
            dataset,
            recipe,
            seed=seed,
            device=device,
            devices=devices,
            report=report,
            distil=distil,
            checkpoints=checkpoints,
        )


def distilling_from(teacher: Teacher, recipe: TeacherRecipe, model: "PreTrainedModel") -> Distil:
    """The loss of a recipe. StudyError if the store cannot serve its temperature or the model's vocabulary."""
    if isinstance(teacher, TeacherLogits) and recipe.alpha > 0:
        teacher.require(recipe.temperature, model.get_output_embeddings().weight.shape[0])
    return Distil(teacher, recipe.alpha, recipe.temperature)


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
    done = distill(
        model,
        dataset,
        teacher,
        step.recipe,
        step.seed,
        step.device,
        step.report,
        checkpoints,
        step.devices,
    )
    save_full_precision(model.cpu(), step.output, tokenizer_from=step.parent, masters=True)
    metadata = done.metadata() | about_the_loss(teacher, step.recipe)
    checks = (check_finite(step.output), check_size(step.output))
    return StepReport(checks, metadata, done.tokens_seen, done.peak_bytes)


def about_the_loss(teacher: TeacherLogits, recipe: TeacherRecipe) -> dict[str, Any]:
    """What a StepReport says of the teacher and the loss."""
    return {
        "teacher": teacher.manifest["teacher"],
        "teacher_coding": teacher.manifest["coding"],
        "temperature": recipe.temperature,
        "alpha": recipe.alpha,
    }
