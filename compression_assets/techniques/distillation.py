"""Knowledge distillation (KD): a student learns from the stored answers of a teacher. No training loop in here."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from compression_assets.techniques.step import Report, StepInputs, StepReport, no_report
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.head_loss import Teacher
from compression_assets.training.loop import Distil, TrainingReport, train
from compression_assets.training.resuming import Checkpoints, checkpoints_in
from compression_assets.training.schedule import TrainingRecipe
from compression_assets.training.teacher_logits import TeacherLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DistillationRecipe(TrainingRecipe):
    """(1 - alpha) * CE + alpha * T^2 * KL(teacher || student), mean over content tokens. Defaults: the paper's.

    The paper's text gives no temperature; its authors' README says 4.0, their script 2.0. Learning rate: script 1e-4,
    README 2e-5.
    """

    alpha: float = Field(default=0.3, ge=0, le=1, description="share of the KL")
    temperature: float = Field(default=2.0, gt=0)
    epochs: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    batch_size: int = Field(default=2, ge=1)
    gradient_accumulation: int = Field(default=4, ge=1)
    max_grad_norm: float = Field(default=0.5, gt=0)


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
    return train(
        model,
        dataset,
        recipe,
        seed=seed,
        device=device,
        report=report,
        distil=distil,
        checkpoints=checkpoints,
    )


class Distillation:
    """The technique KD. It reads the parent's float32 masters where there are some and leaves its own."""

    name = "KD"
    title = "knowledge distillation"
    Recipe = DistillationRecipe
    needs_full_precision = True
    quantizes = False
    inputs: ClassVar[tuple[str, ...]] = ("distillation_set", "teacher_logits")
    checks: ClassVar[tuple[str, ...]] = ("weights_finite", "size_as_asked")

    @staticmethod
    def apply(step: StepInputs) -> StepReport:
        """Distil the parent on the distillation set. StudyError if the teacher logits were made for other data."""
        from compression_assets.checkpoints import (
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
