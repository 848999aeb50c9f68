"""What P will come to."""

from collections.abc import Sequence

from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.techniques.pruning.mixes import Mix, mixes, with_mix
from compression_assets.techniques.pruning.recipe import Cut, PruningRecipe
from compression_assets.training.memory import LIBRARIES, Shapes, forward_memory, training_memory
from compression_assets.training.work import forward_flops, tokens_of, training_flops
from compression_assets.weights.shapes import Config, parameters


def predict_pruning(config: Config, recipe: PruningRecipe, context: StepContext) -> Prediction:
    """Forward passes over the calibration set, the cut, and fine-tuning. Raises StudyError as `pruned`.

    Of several mixes the costs are those of the dearest.
    """
    tried = mixes(config, recipe)
    tokens = tokens_of(recipe.finetune, context.volume("finetuning_set"))
    after = pruned(config, recipe)
    shapes = Shapes.of(config)
    if shapes is None:
        return Prediction(after, tokens=tokens, flops=None, seconds=None)
    made = [with_mix(config, mix) for mix in tried]
    scoring = _passes(config, recipe, tried) * forward_flops(config, context.volume("calibration_set"))
    training = max(training_flops(one, recipe.finetune, context.volume("finetuning_set")) for one in made)
    return Prediction(
        after,
        tokens=tokens,
        flops=training + scoring,
        memory=max(_memory(shapes, Shapes.of(one) or shapes, recipe, context) for one in made),
        seconds=context.trained_in(training) + scoring / context.scoring,
    )


def _passes(config: Config, recipe: PruningRecipe, tried: Sequence[Mix]) -> int:
    """Forward passes over the calibration set; a backward pass counts as two."""
    cuts = dict.fromkeys(cut for mix in tried for cut in mix)
    measuring = sum(_measuring(config, recipe, cut, tried) for cut in cuts)
    # The parent, and what each mix leaves of it.
    return measuring + (1 + len(tried) if len(tried) > 1 else 0)


def _measuring(config: Config, recipe: PruningRecipe, cut: Cut, tried: Sequence[Mix]) -> int:
    if cut != "depth":
        return 3 if recipe.importance == "loss" else 1
    if recipe.layers == "loss":
        return int(config["num_hidden_layers"])
    return len({mix[cut] for mix in tried if cut in mix}) if recipe.layers == "block" else 1


def pruned(config: Config, recipe: PruningRecipe) -> Config:
    """The config after P. StudyError where P cannot be applied.

    Which of several mixes is taken is known once they are measured. All are within the target; the one given here has
    the most parameters of those that leave embeddings whole, so that later steps and files are no larger with another.
    """
    found = mixes(config, recipe)
    if len(found) == 1:
        return with_mix(config, found[0])
    whole = [mix for mix in found if "hidden" not in mix] or found
    return max((with_mix(config, mix) for mix in whole), key=parameters)


def _memory(before: Shapes, after: Shapes, recipe: PruningRecipe, context: StepContext) -> int:
    length, kind, width = context.max_length, context.device, context.compute_bytes
    tokens = context.rows(recipe.calibration_batch_size) * length
    importance = forward_memory(before, tokens, length, width) + width * before.parameters
    # On the CPU: both models in float32.
    cutting = 4 * (before.parameters + after.parameters) if kind == "cpu" else 0
    rows = context.rows(recipe.finetune.batch_size)
    trained = training_memory(after, recipe.finetune, rows, length, kind, width, gpus=context.gpus)
    return LIBRARIES[kind] + max(importance, cutting, trained)
