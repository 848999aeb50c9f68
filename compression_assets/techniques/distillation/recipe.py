"""What KD is told: the loss, and how it is trained."""

from typing import Self

from pydantic import Field, model_validator

from compression_assets.training.schedule import TrainingRecipe


class DistillationRecipe(TrainingRecipe):
    """(1 - alpha) * CE + alpha * T^2 * KL(teacher || student), mean over content tokens. Defaults: the paper's.

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
