"""How many neurons, layers, key-value groups or channels P keeps, and the config.json of a model of so many."""

from collections.abc import Sequence
from decimal import Decimal
from math import lcm

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning.blocks import ffn_blocks, width_key
from compression_assets.techniques.pruning.recipe import UNITS, Cut, PruningRecipe, kept_units
from compression_assets.weights import architectures
from compression_assets.weights.architectures import LLAMA_LIKE, Config
from compression_assets.weights.shapes import parameters

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Keys of a config.json that hold one entry for each layer."""
HEADS_DIVIDE_HIDDEN = ("llama", "gemma3_text")
"""Kinds whose config transformers refuses unless heads divide the hidden size, whatever its head_dim says."""


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


def kept_of(config: Config, cut: Cut, recipe: PruningRecipe) -> int:
    """Units that a cut keeps of a model of this config. Raises StudyError when nothing, or all of it, would go."""
    multiple_of = multiple_for(config, cut, recipe.multiple)
    if recipe.target is None:
        try:
            return kept_units(unit_count(config, cut), recipe.ratio, multiple_of, UNITS[cut])
        except StudyError as error:
            raise StudyError(f"{error}{_why(config, cut, recipe.multiple)}") from error
    whole = parameters(config)
    kept = kept_within(config, cut, Decimal(str(recipe.target)) * whole, multiple_of)
    if not kept:
        count = unit_count(config, cut)
        fewest = min(multiple_of, count)
        smallest = parameters(with_units(config, cut, fewest)) / whole
        raise StudyError(
            f"target {recipe.target} of the parameters is out of reach by cutting {UNITS[cut]}, of which {fewest} of "
            f"{count} at least {'stays' if fewest == 1 else 'stay'}{_why(config, cut, recipe.multiple)}: it leaves "
            f"{smallest:.3f}; choose a larger target or another cut"
        )
    return kept


def multiple_for(config: Config, cut: Cut, multiple_of: int) -> int:
    """What the units that a cut keeps are a multiple of, if widths are to be multiples of `multiple_of`."""
    if cut == "width":
        return multiple_of
    if cut == "hidden" and architectures.kind(config) in HEADS_DIVIDE_HIDDEN:
        return lcm(multiple_of, int(architectures.standard(config)["num_attention_heads"]))
    return multiple_of if cut == "hidden" else 1


def _why(config: Config, cut: Cut, asked: int) -> str:
    """Why the units kept are multiples of more than was asked."""
    if multiple_for(config, cut, asked) == asked or cut != "hidden":
        return ""
    heads = architectures.standard(config)["num_attention_heads"]
    return f" (transformers takes only hidden sizes that the {heads} heads of such a model divide)"


def kept_within(config: Config, cut: Cut, budget: Decimal, multiple_of: int) -> int:
    """The most units, in multiples, with which a model has at most `budget` parameters; 0 where there are none.

    Parameters grow by the same for each unit.
    """
    count, whole = unit_count(config, cut), parameters(config)
    if multiple_of >= count:
        return count if budget >= whole and count % multiple_of == 0 else 0
    # Of the fewest units that there can be, since transformers does not take a config of any number.
    least = parameters(with_units(config, cut, multiple_of))
    each = Decimal(whole - least) / (count - multiple_of)
    kept = min(multiple_of + int((budget - least) // each), count) if budget >= least else 0
    kept -= kept % multiple_of
    while kept and not _stated(config, cut, kept):
        kept -= multiple_of
    return kept


def _stated(config: Config, cut: Cut, kept: int) -> bool:
    """Whether transformers takes a config with so many units."""
    sizes = architectures.standard(config)
    if cut != "heads" or architectures.kind(config) not in HEADS_DIVIDE_HIDDEN:
        return True
    queries = sizes["num_attention_heads"] // unit_count(config, "heads")
    return bool(sizes["hidden_size"] % (kept * queries) == 0)


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
