"""Which models Q would leave too much of as it is, or cannot store, known from config.json."""

from compression_assets.errors import StudyError
from compression_assets.techniques.quantization.mixture import options
from compression_assets.techniques.quantization.recipe import QuantizationRecipe, too_much_uncovered
from compression_assets.weights import architectures
from compression_assets.weights.architectures import LLAMA_LIKE, Config
from compression_assets.weights.formats.format import Format
from compression_assets.weights.layers import decoder_layers
from compression_assets.weights.shapes import tensors


def refusal(config: Config, recipe: QuantizationRecipe) -> str | None:
    """Why Q cannot be applied to a model of this config, in one sentence, or None."""
    kind, uncovered = architectures.kind(config), architectures.uncovered_share(config)
    if reason := too_much_uncovered(kind, uncovered, recipe):
        return reason
    if recipe.by_output and kind not in LLAMA_LIKE:
        try:
            decoder_layers(architectures.empty(config))
        except StudyError as error:
            return str(error)
    return _refused_mixture(config, recipe) if recipe.mixed else _refused_shape(config, recipe)


def _refused_mixture(config: Config, recipe: QuantizationRecipe) -> str | None:
    """Why no choice of formats is within the budget."""
    try:
        options(tensors(config), recipe)
    except StudyError as error:
        return str(error)
    return None


def _refused_shape(config: Config, recipe: QuantizationRecipe) -> str | None:
    """The first weight of a model that the recipe's format cannot store, and why."""
    form = recipe.format
    if type(form).refusal is Format.refusal:
        # It stores any shape. Listing a model's tensors may need torch and seconds.
        return None
    for tensor in tensors(config):
        if form.covers(tensor) and (reason := form.refusal(tensor.shape)):
            return f"{form.title} cannot store {tensor.name}: {reason}"
    return None
