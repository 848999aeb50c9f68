"""What D will come to: files, and no arithmetic worth counting."""

from compression_assets.techniques.dequantization.recipe import DequantizationRecipe
from compression_assets.techniques.prediction import Prediction, StepContext, in_format
from compression_assets.training.memory import LIBRARIES, Shapes, stored_bytes
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.shapes import Config


def predict_dequantization(config: Config, recipe: DequantizationRecipe, context: StepContext) -> Prediction:
    """On the CPU, whatever the device: masters twice, as written and as compared with the file that they come from."""
    shapes = Shapes.of(config)
    after = in_format(config, BF16())
    if shapes is None:
        return Prediction(after)
    held = 8 * shapes.parameters + stored_bytes(shapes, config) if context.device == "cpu" else 0
    return Prediction(after, memory=LIBRARIES[context.device] + held)
