"""Which models P cannot prune, known from config.json."""

from collections.abc import Sequence

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning.amounts import unit_count, with_units
from compression_assets.techniques.pruning.depth import layer_names
from compression_assets.techniques.pruning.heads import group_cuts
from compression_assets.techniques.pruning.hidden import channel_cuts, refuse_kind
from compression_assets.techniques.pruning.mixes import Mix, mixes, with_mix
from compression_assets.techniques.pruning.rebuild import tensors_for
from compression_assets.techniques.pruning.recipe import Cut, PruningRecipe
from compression_assets.training import refusal as training
from compression_assets.weights import architectures
from compression_assets.weights.architectures import Config


def refusal(config: Config, recipe: PruningRecipe) -> str | None:
    """Why P cannot be applied to a model of this config, in one sentence, or None."""
    if architectures.has_experts(config):
        kind = architectures.kind(config)
        return f"models of type {kind!r} are mixtures of experts, whose neurons P does not cut: use a dense model"
    try:
        if "hidden" in recipe.cuts:
            refuse_kind(config)
        tried = mixes(config, recipe)
    except StudyError as error:
        return str(error)
    for cut in recipe.cuts:
        try:
            _refuse_cut(config, tried, cut)
        except StudyError as error:
            return str(error) if recipe.cut == cut else f"{error}; leave {cut} out of among"
    return training.refusal(config)


def _refuse_cut(config: Config, tried: Sequence[Mix], cut: Cut) -> None:
    """Try the cut alone, or after as few others as can be. Raises StudyError where the result could not be loaded."""
    mix = next((mix for mix in tried if cut in mix), None)
    if cut == "width" or mix is None:
        return
    earlier = list(mix)[: list(mix).index(cut)]
    parent = with_mix(config, {other: mix[other] for other in earlier})
    _refuse_unloadable(parent, with_units(parent, cut, mix[cut]), cut)


def _refuse_unloadable(config: Config, after: Config, cut: Cut) -> None:
    """Make the cut on the meta device. Raises StudyError where transformers could not load the result."""
    model, kept = architectures.empty(config), list(range(unit_count(after, cut)))
    if cut == "depth":
        tensors_for(model, after, layer_names(model, kept), ())
    elif cut == "hidden":
        tensors_for(model, after, {}, channel_cuts(model, kept))
    else:
        tensors_for(model, after, {}, group_cuts(model, [kept] * model.config.num_hidden_layers))
