"""D: stored codes become full-precision weights again."""

from compression_assets.techniques.dequantization.apply import dequantize_step
from compression_assets.techniques.dequantization.predict import predict_dequantization
from compression_assets.techniques.dequantization.recipe import DequantizationRecipe
from compression_assets.techniques.technique import DEQUANTIZATION, Technique


class Dequantization(Technique):
    """D: stored codes back to full-precision weights, so that the next step can train them."""

    name = DEQUANTIZATION
    title = "dequantization"
    Recipe = DequantizationRecipe
    needs_full_precision = False
    checks = ("weights_finite", "size_as_asked", "dequantization_error", "nf4_stable")
    apply = staticmethod(dequantize_step)
    predict = staticmethod(predict_dequantization)
