"""What P will come to."""

from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.techniques.pruning.amounts import kept_of, with_units
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.training.memory import LIBRARIES, Shapes, forward_memory, training_memory
from compression_assets.training.work import forward_flops, tokens_of, training_flops
from compression_assets.weights.shapes import Config


def predict_pruning(config: Config, recipe: PruningRecipe, context: StepContext) -> Prediction:
    """A forward pass over the calibration set, the cut, and fine-tuning. Raises StudyError as `pruned`."""
    tokens = tokens_of(recipe.finetune, context.volume("finetuning_set"))
    after = pruned(config, recipe)
    shapes = Shapes.of(config)
    if shapes is None:
        return Prediction(after, tokens=tokens, flops=None, seconds=None)
    scoring = _passes(config, recipe) * forward_flops(config, context.volume("calibration_set"))
    training = training_flops(after, recipe.finetune, context.volume("finetuning_set"))
    return Prediction(
        after,
        tokens=tokens,
        flops=training + scoring,
        memory=_memory(shapes, Shapes.of(after) or shapes, recipe, context),
        seconds=context.trained_in(training) + scoring / context.scoring,
    )


def _passes(config: Config, recipe: PruningRecipe) -> int:
    """Forward passes over the calibration set; a backward pass counts as two."""
    if recipe.cut == "depth":
        return int(config["num_hidden_layers"]) if recipe.layers == "loss" else 1
    return 3 if recipe.importance == "loss" else 1


def pruned(config: Config, recipe: PruningRecipe) -> Config:
    """The config after P. StudyError where P cannot be applied."""
    return with_units(config, recipe.cut, kept_of(config, recipe))


def _memory(before: Shapes, after: Shapes, recipe: PruningRecipe, context: StepContext) -> int:
    length, kind, width = context.max_length, context.device, context.compute_bytes
    tokens = context.rows(recipe.calibration_batch_size) * length
    importance = forward_memory(before, tokens, length, width) + width * before.parameters
    # On the CPU: both models in float32.
    cutting = 4 * (before.parameters + after.parameters) if kind == "cpu" else 0
    rows = context.rows(recipe.finetune.batch_size)
    trained = training_memory(after, recipe.finetune, rows, length, kind, width, gpus=context.gpus)
    return LIBRARIES[kind] + max(importance, cutting, trained)
