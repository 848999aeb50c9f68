"""Which models Q would leave too much of as it is, known from config.json."""

from compression_assets.errors import StudyError
from compression_assets.techniques.quantization.calibrated import decoder_layers
from compression_assets.techniques.quantization.recipe import QuantizationRecipe, too_much_uncovered
from compression_assets.weights import architectures
from compression_assets.weights.architectures import LLAMA_LIKE, Config


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
    return None
