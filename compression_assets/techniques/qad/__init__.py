"""QAD: a quantized model is distilled as what it is, and stays quantized."""

from collections.abc import Sequence

from compression_assets.errors import StudyError
from compression_assets.techniques.qad.apply import UNQUANTIZED, qad_step
from compression_assets.techniques.qad.predict import predict_qad
from compression_assets.techniques.qad.recipe import QADRecipe
from compression_assets.techniques.technique import Reads, Technique, quantized_by


class QuantizationAwareDistillation(Technique):
    """QAD: no dequantization before it and no quantization after it, whatever the number format."""

    name = "QAD"
    title = "quantization-aware distillation"
    Recipe = QADRecipe
    needs_full_precision = False
    needs_quantized = True
    checks = ("weights_finite", "size_as_asked", "as_trained")
    apply = staticmethod(qad_step)
    predict = staticmethod(predict_qad)

    @classmethod
    def gpus(cls, recipe: QADRecipe, training: int) -> int:
        if training > 1:
            raise StudyError(
                "after every step it rounds whole weights, of which each of several GPUs has a part only: set gpus: 1, "
                "or leave QAD out"
            )
        return 1

    @classmethod
    def reads(cls, recipe: QADRecipe) -> Reads:
        models = {UNQUANTIZED: _before_quantization} if recipe.masters == "unquantized" else {}
        return Reads(("distillation_set", "teacher_logits"), models)


def _before_quantization(before: Sequence[type[Technique]]) -> int:
    quantizing = quantized_by(before)
    if quantizing is None:
        raise StudyError("it says masters: unquantized, but nothing is quantized before it")
    return quantizing
