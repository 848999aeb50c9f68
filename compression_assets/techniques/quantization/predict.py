"""What Q will come to."""

from compression_assets.techniques.prediction import Prediction, StepContext, in_format
from compression_assets.techniques.quantization.recipe import CALIBRATION_SET, QuantizationRecipe
from compression_assets.training.memory import LIBRARIES, Shapes, forward_memory, stored_bytes
from compression_assets.training.work import Volume, attention_width, forward_flops
from compression_assets.weights.formats.format import Format
from compression_assets.weights.shapes import Config, tensors

BY_OUTPUT_IDLE = 3.5
"""Quantizing column by column is thousands of small operations a matrix: measured 104 to 135 s where FLOPs say 33."""


def predict_quantization(config: Config, recipe: QuantizationRecipe, context: StepContext) -> Prediction:
    """Rounding each weight by itself is all files; by layer output there are forward passes and inverses as well."""
    shapes, after = Shapes.of(config), in_format(config, recipe.format)
    flops: float | None = 0.0
    if recipe.by_output:
        flops = None if shapes is None else by_output_flops(config, context.volume(CALIBRATION_SET))
    return Prediction(
        after,
        flops=flops,
        memory=None if shapes is None else _memory(shapes, after, recipe, context),
        seconds=None if flops is None else flops * BY_OUTPUT_IDLE / context.scoring,
    )


def refused_shape(config: Config, recipe: QuantizationRecipe) -> str | None:
    """The first weight of a model that the recipe's format cannot store, and why."""
    form = recipe.format
    if type(form).refusal is Format.refusal:
        # It stores any shape. Listing a model's tensors may need torch and seconds.
        return None
    for tensor in tensors(config):
        if form.covers(tensor) and (reason := form.refusal(tensor.shape)):
            return f"{form.title} cannot store {tensor.name}: {reason}"
    return None


def _memory(shapes: Shapes, after: Config, recipe: QuantizationRecipe, context: StepContext) -> int:
    # On the CPU: the float32 masters that it is compared with, and the file twice (as written, as loaded).
    masters = 4 * shapes.parameters if context.device == "cpu" else 0
    codes = stored_bytes(shapes, after)
    by_output = by_output_memory(shapes, codes, context.max_length) if recipe.by_output else 0
    return LIBRARIES[context.device] + max(masters + 2 * codes, by_output)


def by_output_memory(shapes: Shapes, codes: int, max_length: int) -> int:
    """Bytes of quantizing layer by layer: the model in float32, codes, second moments, the widest of them in float64.

    Hidden states of the calibration set, 8 bytes a token and hidden unit, come on top: its length is not known here.
    """
    width = shapes.heads * shapes.head_dim
    moments = 4 * (5 * shapes.hidden**2 + width**2 + shapes.intermediate**2)
    widest = 8 * 4 * max(shapes.hidden, shapes.intermediate) ** 2
    layer = forward_memory(shapes, max_length, max_length, 4)
    return 4 * shapes.parameters + codes + moments + widest + layer


def by_output_flops(config: Config, volume: Volume) -> float:
    """Quantizing layer by layer, in FLOPs of bfloat16.

    Three passes and second moments in float32 count twice, inverses and output errors in float64 four times.
    """
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], attention_width(config)
    moments = 2.0 * volume.tokens * (5 * hidden**2 + heads**2 + inner**2)
    inverses = 2.0 * (5 * hidden**3 + heads**3 + inner**3)
    errors = 4.0 * (hidden**2 * (3 * heads + 2 * inner) + hidden * heads**2 + hidden * inner**2)
    layers = config["num_hidden_layers"] * (2 * moments + 4 * (inverses + errors))
    return 6 * forward_flops(config, volume) + layers
