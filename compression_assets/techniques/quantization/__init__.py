"""Q: linear layers are stored in few bits."""

from collections.abc import Sequence

from compression_assets.errors import StudyError
from compression_assets.techniques.quantization.apply import quantize_step
from compression_assets.techniques.quantization.predict import predict_quantization
from compression_assets.techniques.quantization.recipe import CALIBRATION_SET, GRID, QuantizationRecipe
from compression_assets.techniques.quantization.refusal import refusal
from compression_assets.techniques.technique import Reads, Technique, last_quantized
from compression_assets.weights.formats.format import Format


class Quantization(Technique):
    """Q: stores every linear layer but the output embedding in a number format of few bits, NF4 by default."""

    name = "Q"
    title = "quantization"
    Recipe = QuantizationRecipe
    quantizes = True
    checks = ("weights_finite", "size_as_asked", "dequantization_error")
    apply = staticmethod(quantize_step)
    predict = staticmethod(predict_quantization)
    refusal = staticmethod(refusal)

    @classmethod
    def reads(cls, recipe: QuantizationRecipe) -> Reads:
        return Reads(
            data=(CALIBRATION_SET,) if recipe.calibrated else (),
            models={GRID: _grid_to_keep} if recipe.keep_absmax else {},
        )

    @classmethod
    def leaves(cls, recipe: QuantizationRecipe) -> Format:
        return recipe.format


def _grid_to_keep(before: Sequence[type[Technique]]) -> int:
    try:
        return last_quantized(before)
    except StudyError as error:
        raise StudyError(f"it says keep_absmax, but {error}") from None
