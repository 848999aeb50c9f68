"""Which models P cannot prune, known from config.json."""

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning.predict import pruned
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.training import refusal as training
from compression_assets.weights import architectures
from compression_assets.weights.architectures import Config


def refusal(config: Config, recipe: PruningRecipe) -> str | None:
    """Why P cannot be applied to a model of this config, in one sentence, or None."""
    if architectures.has_experts(config):
        kind = architectures.kind(config)
        return f"models of type {kind!r} are mixtures of experts, whose neurons P does not cut: use a dense model"
    try:
        pruned(config, recipe)
    except StudyError as error:
        return str(error)
    return training.refusal(config)
