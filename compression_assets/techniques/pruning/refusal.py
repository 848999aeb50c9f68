"""What P makes of a config, and which models it cannot prune, known from config.json."""

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning.blocks import ffn_blocks, width_key
from compression_assets.techniques.pruning.technique import PruningRecipe, kept_width
from compression_assets.training import refusal as training
from compression_assets.weights import architectures
from compression_assets.weights.architectures import LLAMA_LIKE, Config


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


def pruned(config: Config, recipe: PruningRecipe) -> Config:
    """The config after P, its width under the config's own key too. StudyError where P cannot be applied."""
    if architectures.kind(config) in LLAMA_LIKE:
        key, width = "intermediate_size", config["intermediate_size"]
    else:
        model = architectures.empty(config)
        key, width = width_key(model.config), ffn_blocks(model)[0].width
    kept = kept_width(width, recipe.ratio, recipe.multiple_of)
    return {**config, "intermediate_size": kept, key: kept}
