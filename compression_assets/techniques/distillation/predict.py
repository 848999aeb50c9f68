"""What KD will come to."""

from compression_assets.techniques.distillation.recipe import TeacherRecipe
from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.training.memory import LIBRARIES, Shapes, training_memory
from compression_assets.training.work import epochs_of, head_flops, tokens_of, training_flops
from compression_assets.weights.shapes import Config


def predict_distillation(
    config: Config, recipe: TeacherRecipe, context: StepContext, rounded: bool = False
) -> Prediction:
    """Training, and the teacher's output layer where its hidden states are stored.

    rounded: it computes with weights that are not the masters, in whatever precision.
    """
    volume, shapes = context.volume("distillation_set"), Shapes.of(config)
    tokens = tokens_of(recipe, volume)
    if shapes is None:
        return Prediction(config, tokens=tokens, flops=None, seconds=None)
    training = training_flops(config, recipe, volume)
    scoring = 0.0
    if recipe.alpha > 0 and context.teacher_logits.coding == "hidden":
        scoring = epochs_of(recipe, volume) * head_flops(context.teacher or config, volume)
    memory = training_memory(
        shapes,
        recipe,
        context.rows(recipe.batch_size),
        context.max_length,
        context.device,
        context.compute_bytes,
        rounded=rounded,
        gpus=context.gpus,
        teacher_hidden=int((context.teacher or config)["hidden_size"]) if scoring else 0,
    )
    return Prediction(
        config,
        tokens=tokens,
        flops=training + scoring,
        memory=LIBRARIES[context.device] + memory,
        seconds=context.trained_in(training) + scoring / context.scoring / context.gpus,
    )
