"""How many neurons, layers, key-value groups or channels P keeps, and the config.json of a model of so many."""

from collections.abc import Sequence
from decimal import Decimal

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning.blocks import ffn_blocks, width_key
from compression_assets.techniques.pruning.recipe import IN_MULTIPLES, UNITS, Cut, PruningRecipe, kept_units
from compression_assets.weights import architectures
from compression_assets.weights.architectures import LLAMA_LIKE, Config
from compression_assets.weights.shapes import parameters

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Keys of a config.json that hold one entry for each layer."""


def unit_count(config: Config, cut: Cut) -> int:
    """Neurons of a feed-forward block, layers, key-value groups of a layer, or channels.

    Raises StudyError where the width is not stated.
    """
    if cut == "width":
        return _width(config)[1]
    sizes = architectures.standard(config)
    if cut == "depth":
        return int(sizes["num_hidden_layers"])
    if cut == "hidden":
        return int(sizes["hidden_size"])
    return int(sizes.get("num_key_value_heads") or sizes["num_attention_heads"])


def kept_of(config: Config, recipe: PruningRecipe) -> int:
    """Units that P keeps of a model of this config. Raises StudyError when nothing, or all of it, would go."""
    count = unit_count(config, recipe.cut)
    multiple_of = recipe.multiple_of if recipe.cut in IN_MULTIPLES else 1
    if recipe.target is None:
        return kept_units(count, recipe.ratio, multiple_of, UNITS[recipe.cut])
    return _kept_within(config, recipe.cut, count, recipe.target, multiple_of)


def with_units(config: Config, cut: Cut, kept: int) -> Config:
    """The config of a model with `kept` units; of layers, the first ones."""
    if cut == "depth":
        return with_layers(config, range(kept))
    if cut == "heads":
        return _with_groups(config, kept)
    if cut == "hidden":
        # Heads times their size is no longer the hidden size, so that the size is stated.
        return {**config, "hidden_size": kept, "head_dim": head_size(config)}
    return {**config, "intermediate_size": kept, _width(config)[0]: kept}


def with_layers(config: Config, kept: Sequence[int]) -> Config:
    """The config of a model with the layers `kept`, under the config's own keys too."""
    key = "num_hidden_layers"
    if architectures.kind(config) not in LLAMA_LIKE:
        key = architectures.as_transformers(config).attribute_map.get(key, key)
    lists = {name: [config[name][index] for index in kept] for name in PER_LAYER if config.get(name)}
    return {**config, **lists, "num_hidden_layers": len(kept), key: len(kept)}


def head_size(config: Config) -> int:
    """Numbers in a query, key or value of one head."""
    stated = (
        config.get("head_dim")
        if architectures.kind(config) in LLAMA_LIKE
        else getattr(architectures.as_transformers(config), "head_dim", None)
    )
    sizes = architectures.standard(config)
    return int(stated or sizes["hidden_size"] // sizes["num_attention_heads"])


def _with_groups(config: Config, kept: int) -> Config:
    """Heads times their size is no longer the hidden size, so that the size is stated."""
    heads = architectures.standard(config)["num_attention_heads"]
    queries = heads // unit_count(config, "heads")
    stated = {"num_attention_heads": kept * queries, "num_key_value_heads": kept}
    return {**config, **stated, "head_dim": head_size(config)}


def _width(config: Config) -> tuple[str, int]:
    """The key that states the width of feed-forward blocks, and the width."""
    if architectures.kind(config) in LLAMA_LIKE:
        return "intermediate_size", int(config["intermediate_size"])
    model = architectures.empty(config)
    return width_key(model.config), ffn_blocks(model)[0].width


def _kept_within(config: Config, cut: Cut, count: int, target: float, multiple_of: int) -> int:
    """The most units with which a model has at most `target` times its parameters, which grow by the same for each."""
    whole, least = parameters(config), parameters(with_units(config, cut, 1))
    each = Decimal(whole - least) / max(count - 1, 1)
    kept = 1 + int((Decimal(str(target)) * whole - least) // each) if each else 0
    kept -= kept % multiple_of
    if kept < 1:
        smallest = parameters(with_units(config, cut, multiple_of)) / whole
        raise StudyError(
            f"target {target} of the parameters is out of reach by cutting {UNITS[cut]}, of which {multiple_of} at "
            f"least stays: it leaves {smallest:.3f}; choose a larger target or another cut"
        )
    return kept
