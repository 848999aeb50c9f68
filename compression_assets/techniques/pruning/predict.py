"""What P will come to."""

from dataclasses import replace

from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.techniques.pruning.blocks import ffn_blocks, width_key
from compression_assets.techniques.pruning.recipe import PruningRecipe, kept_width
from compression_assets.training.memory import LIBRARIES, Shapes, forward_memory, training_memory
from compression_assets.training.work import forward_flops, tokens_of, training_flops
from compression_assets.weights import architectures
from compression_assets.weights.architectures import LLAMA_LIKE
from compression_assets.weights.shapes import Config


def predict_pruning(config: Config, recipe: PruningRecipe, context: StepContext) -> Prediction:
    """A forward pass over the calibration set, the cut, and fine-tuning. Raises StudyError as `kept_width`."""
    tokens = tokens_of(recipe.finetune, context.volume("finetuning_set"))
    after = pruned(config, recipe)
    shapes = Shapes.of(config)
    if shapes is None:
        return Prediction(after, tokens=tokens, flops=None, seconds=None)
    scoring = forward_flops(config, context.volume("calibration_set"))
    training = training_flops(after, recipe.finetune, context.volume("finetuning_set"))
    return Prediction(
        after,
        tokens=tokens,
        flops=training + scoring,
        memory=_memory(shapes, replace(shapes, intermediate=after["intermediate_size"]), recipe, context),
        seconds=training / context.training + scoring / context.scoring,
    )


def pruned(config: Config, recipe: PruningRecipe) -> Config:
    """The config after P, its width under the config's own key too. StudyError where P cannot be applied."""
    if architectures.kind(config) in LLAMA_LIKE:
        key, width = "intermediate_size", config["intermediate_size"]
    else:
        model = architectures.empty(config)
        key, width = width_key(model.config), ffn_blocks(model)[0].width
    kept = kept_width(width, recipe.ratio, recipe.multiple_of)
    return {**config, "intermediate_size": kept, key: kept}


def _memory(before: Shapes, after: Shapes, recipe: PruningRecipe, context: StepContext) -> int:
    length, kind, width = context.max_length, context.device, context.compute_bytes
    tokens = context.rows(recipe.calibration_batch_size) * length
    importance = forward_memory(before, tokens, length, width) + width * before.parameters
    # On the CPU: both models in float32.
    cutting = 4 * (before.parameters + after.parameters) if kind == "cpu" else 0
    rows = context.rows(recipe.finetune.batch_size)
    trained = training_memory(after, recipe.finetune, rows, length, kind, width)
    return LIBRARIES[kind] + max(importance, cutting, trained)
