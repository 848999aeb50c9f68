"""What KD is told: the loss, and how it is trained."""

from pydantic import Field

from compression_assets.training.schedule import TrainingRecipe


class TeacherRecipe(TrainingRecipe):
    """A training on the teacher's answers."""

    alpha: float = Field(ge=0, le=1, description="share of the KL")
    temperature: float = Field(gt=0)
    epochs: int = Field(default=2, ge=1)
    warmup_steps: int = Field(default=50, ge=0)
    batch_size: int = Field(default=2, ge=1)
    gradient_accumulation: int = Field(default=4, ge=1)
    max_grad_norm: float = Field(default=0.5, gt=0)


class DistillationRecipe(TeacherRecipe):
    """(1 - alpha) * CE + alpha * T^2 * KL(teacher || student), mean over the tokens trained. Defaults: the paper's.

    The paper's text gives no temperature; its authors' README says 4.0, their script 2.0. Learning rate: script 1e-4,
    README 2e-5.

    adapter_rank: train adapters of this rank on every linear layer and nothing else, and merge them (`low_rank`).
    """

    alpha: float = Field(default=0.3, ge=0, le=1, description="share of the KL")
    temperature: float = Field(default=2.0, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    adapter_rank: int | None = Field(default=None, ge=1)
