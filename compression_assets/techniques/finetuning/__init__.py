"""FT: plain fine-tuning, the control beside distillation."""

from typing import Any

from compression_assets.techniques.finetuning.apply import finetune_step
from compression_assets.techniques.finetuning.predict import predict_finetuning
from compression_assets.techniques.technique import Reads, Technique
from compression_assets.training.finetuning import FinetuneRecipe
from compression_assets.training.refusal import refusal
from compression_assets.training.sharing import shared


class PlainFinetuning(Technique):
    """FT: cross-entropy on the distillation set.

    What KD gains over it comes from the teacher; what both gain over the base is training on the domain.
    """

    name = "FT"
    title = "plain fine-tuning"
    Recipe = FinetuneRecipe
    checks = ("weights_finite", "size_as_asked")
    apply = staticmethod(finetune_step)
    predict = staticmethod(predict_finetuning)
    refusal = staticmethod(refusal)

    @classmethod
    def gpus(cls, recipe: Any, training: int) -> int:
        return shared(recipe, training)

    @classmethod
    def reads(cls, recipe: Any) -> Reads:
        return Reads(("distillation_set",))
