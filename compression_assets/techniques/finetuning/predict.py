"""What FT will come to."""

from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.training.finetuning import FinetuneRecipe
from compression_assets.training.memory import LIBRARIES, Shapes, training_memory
from compression_assets.training.work import tokens_of, training_flops
from compression_assets.weights.shapes import Config


def predict_finetuning(
    config: Config, recipe: FinetuneRecipe, context: StepContext, data: str = "distillation_set"
) -> Prediction:
    """Training on a data asset, without a teacher; the correction of a teacher as well."""
    volume, shapes = context.volume(data), Shapes.of(config)
    tokens = tokens_of(recipe, volume)
    if shapes is None:
        return Prediction(config, tokens=tokens, flops=None, seconds=None)
    flops = training_flops(config, recipe, volume)
    rows = context.rows(recipe.batch_size)
    memory = training_memory(
        shapes,
        recipe,
        rows,
        context.max_length,
        context.device,
        context.compute_bytes,
        gpus=context.gpus,
    )
    return Prediction(
        config,
        tokens=tokens,
        flops=flops,
        memory=LIBRARIES[context.device] + memory,
        seconds=context.trained_in(flops),
    )
