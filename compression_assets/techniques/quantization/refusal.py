"""Which models Q would leave too much of as it is, known from config.json."""

from compression_assets.techniques.quantization.technique import QuantizationRecipe, too_much_uncovered
from compression_assets.weights import architectures
from compression_assets.weights.architectures import Config


def refusal(config: Config, recipe: QuantizationRecipe) -> str | None:
    """Why Q cannot be applied to a model of this config, in one sentence, or None."""
    return too_much_uncovered(architectures.kind(config), architectures.uncovered_share(config), recipe)
