"""What Q will come to."""

from compression_assets.techniques.prediction import Prediction, StepContext, in_format
from compression_assets.techniques.quantization import mixture
from compression_assets.techniques.quantization.recipe import CALIBRATION_SET, QuantizationRecipe
from compression_assets.training.memory import LIBRARIES, Shapes, forward_memory, stored_bytes
from compression_assets.training.work import Volume, forward_flops, scoring_flops
from compression_assets.weights.shapes import Config, attention_width, tensors

BY_OUTPUT_IDLE = 3.5
"""Quantizing column by column is thousands of small operations a matrix: measured 104 to 135 s where FLOPs say 33."""


def predict_quantization(config: Config, recipe: QuantizationRecipe, context: StepContext) -> Prediction:
    """Rounding each weight by itself is all files; by layer output there are forward passes and inverses as well.

    A mixture is taken to fill its budget (`mixture.filled`). Raises StudyError as `mixture.options`.
    """
    shapes = Shapes.of(config)
    after = mixture.expected_config(config, recipe) if recipe.mixed else in_format(config, recipe.format)
    if shapes is None:
        known = not recipe.calibrated
        return Prediction(after, flops=0.0 if known else None, seconds=0.0 if known else None)
    volume = context.volume(CALIBRATION_SET)
    by_output = by_output_flops(config, volume) if recipe.by_output else 0.0
    trying = trying_flops(config, recipe, volume) if recipe.mixed else 0.0
    return Prediction(
        after,
        flops=by_output + trying,
        memory=_memory(shapes, after, recipe, context),
        seconds=(by_output * BY_OUTPUT_IDLE + trying) / context.scoring,
    )


def _memory(shapes: Shapes, after: Config, recipe: QuantizationRecipe, context: StepContext) -> int:
    # On the CPU: the float32 masters that it is compared with, and the file twice (as written, as loaded).
    masters = 4 * shapes.parameters if context.device == "cpu" else 0
    codes = stored_bytes(shapes, after)
    by_output = by_output_memory(shapes, codes, context.max_length) if recipe.by_output else 0
    trying = trying_memory(shapes, recipe, context.max_length) if recipe.mixed else 0
    return LIBRARIES[context.device] + max(masters + 2 * codes, by_output, trying)


def trying_memory(shapes: Shapes, recipe: QuantizationRecipe, max_length: int) -> int:
    """Bytes of trying formats: the model in float32, its predictions on what is tried, logits of a row four times."""
    predictions = 4 * recipe.sensitivity_tokens * shapes.vocabulary
    row = 4 * 4 * max_length * shapes.vocabulary + forward_memory(shapes, max_length, max_length, 4)
    return 4 * shapes.parameters + predictions + row


def by_output_memory(shapes: Shapes, codes: int, max_length: int) -> int:
    """Bytes of quantizing layer by layer: the model in float32, codes, second moments, the widest of them in float64.

    Hidden states of the calibration set, 8 bytes a token and hidden unit, come on top: its length is not known here.
    """
    width = shapes.heads * shapes.head_dim
    moments = 4 * (5 * shapes.hidden**2 + width**2 + shapes.intermediate**2)
    widest = 8 * 4 * max(shapes.hidden, shapes.intermediate) ** 2
    layer = forward_memory(shapes, max_length, max_length, 4)
    return 4 * shapes.parameters + codes + moments + widest + layer


def trying_flops(config: Config, recipe: QuantizationRecipe, volume: Volume) -> float:
    """A forward pass in float32, which counts twice, for each format of each unit of layers."""
    if not volume.trained:
        return 0.0
    passes = sum(
        not form.full_precision
        for unit in mixture.options(tensors(config), recipe).units
        for form in unit.sizes
    )
    share = min(1.0, recipe.sensitivity_tokens / volume.trained)
    return 2 * (passes + 2) * share * scoring_flops(config, volume)


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
