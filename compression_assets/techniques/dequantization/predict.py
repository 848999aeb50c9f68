"""What D will come to: files, and no arithmetic worth counting."""

from compression_assets.techniques.dequantization.recipe import DequantizationRecipe
from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.training.memory import LIBRARIES, Shapes, nf4_bytes
from compression_assets.weights.shapes import Config


def predict_dequantization(config: Config, recipe: DequantizationRecipe, context: StepContext) -> Prediction:
    """On the CPU, whatever the device: masters twice, as written and as compared with the file that they come from."""
    shapes = Shapes.of(config)
    if shapes is None:
        return Prediction(config)
    held = 8 * shapes.parameters + nf4_bytes(shapes) if context.device == "cpu" else 0
    return Prediction(config, memory=LIBRARIES[context.device] + held)
