"""Knowledge distillation (KD): a student learns from the stored answers of a teacher. No training loop in here."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from compression_assets.store.reports import Report, StepReport, no_report
from compression_assets.techniques.quantization.rounding import rounded
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.head_loss import Teacher
from compression_assets.training.loop import Distil, TrainingReport, train
from compression_assets.training.low_rank import low_rank
from compression_assets.training.masters import AsStored
from compression_assets.training.resuming import Checkpoints, checkpoints_in
from compression_assets.training.schedule import TrainingRecipe
from compression_assets.training.teacher.teacher_logits import TeacherLogits
from compression_assets.weights import nf4

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class DistillationRecipe(TrainingRecipe):
    """(1 - alpha) * CE + alpha * T^2 * KL(teacher || student), mean over the tokens trained. Defaults: the paper's.

    The paper's text gives no temperature; its authors' README says 4.0, their script 2.0. Learning rate: script 1e-4,
    README 2e-5.

    quantization_aware: forward and backward passes compute with what NF4 would store of every linear layer (nearest,
    double quantization), and gradients go to the float32 masters as if it were they (straight-through estimator:
    Bengio et al. 2013, arXiv 1308.3432). The student comes out in full precision all the same; Q comes after.
    adapter_rank: train adapters of this rank on every linear layer and nothing else, and merge them (`low_rank`).
    """

    alpha: float = Field(default=0.3, ge=0, le=1, description="share of the KL")
    temperature: float = Field(default=2.0, gt=0)
    epochs: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    batch_size: int = Field(default=2, ge=1)
    gradient_accumulation: int = Field(default=4, ge=1)
    max_grad_norm: float = Field(default=0.5, gt=0)
    quantization_aware: bool = False
    adapter_rank: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_way_of_training(self) -> Self:
        if self.quantization_aware and self.adapter_rank:
            raise ValueError("quantization_aware and adapter_rank exclude each other")
        return self


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
    covered = nf4.linear_weights(model)

    def as_stored(name: str, master: "torch.Tensor") -> "torch.Tensor | None":
        return rounded(master) if name in covered else None

    return as_stored


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
