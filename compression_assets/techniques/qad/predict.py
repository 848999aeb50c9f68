"""What QAD will come to."""

from dataclasses import replace

from compression_assets.techniques.distillation.predict import predict_distillation
from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.techniques.qad.recipe import QADRecipe
from compression_assets.training.memory import Shapes, stored_bytes
from compression_assets.weights.shapes import Config


def predict_qad(config: Config, recipe: QADRecipe, context: StepContext) -> Prediction:
    """KD's training, with the stored parts beside it; number format and size stay."""
    found, shapes = predict_distillation(config, recipe, context, rounded=True), Shapes.of(config)
    if shapes is None or found.memory is None:
        return found
    return replace(found, memory=found.memory + stored_bytes(shapes, config))
