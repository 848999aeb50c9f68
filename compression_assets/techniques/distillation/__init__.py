"""KD: a student learns from the stored answers of a teacher."""

from typing import Any

from compression_assets.techniques.distillation.apply import distill_step
from compression_assets.techniques.distillation.predict import predict_distillation
from compression_assets.techniques.distillation.recipe import DistillationRecipe
from compression_assets.techniques.technique import Reads, Technique
from compression_assets.training.refusal import refusal
from compression_assets.training.sharing import shared


class Distillation(Technique):
    """KD: reads the parent's float32 masters where there are some, and leaves its own."""

    name = "KD"
    title = "knowledge distillation"
    Recipe = DistillationRecipe
    checks = ("weights_finite", "size_as_asked")
    apply = staticmethod(distill_step)
    predict = staticmethod(predict_distillation)
    refusal = staticmethod(refusal)

    @classmethod
    def gpus(cls, recipe: Any, training: int) -> int:
        return shared(recipe, training)

    @classmethod
    def reads(cls, recipe: Any) -> Reads:
        return Reads(("distillation_set", "teacher_logits"))
