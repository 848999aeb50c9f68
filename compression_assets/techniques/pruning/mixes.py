"""Which cuts, and how much of each, come within P's target: one, or combinations that share the removal evenly."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import combinations
from math import gcd

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning.amounts import (
    head_size,
    kept_of,
    kept_within,
    multiple_for,
    unit_count,
    with_units,
)
from compression_assets.techniques.pruning.recipe import UNITS, Cut, PruningRecipe
from compression_assets.weights.architectures import Config
from compression_assets.weights.shapes import parameters

Mix = Mapping[Cut, int]
"""Cut -> units that stay of what it removes, in the order in which cuts are made."""

ORDER: tuple[Cut, ...] = ("depth", "heads", "hidden", "width")
"""Coarse units first, so that the finest, neurons, make up for what the others miss of the target."""


def mixes(config: Config, recipe: PruningRecipe) -> list[Mix]:
    """What P tries on a model of this config: one mix unless the recipe is to choose.

    Raises StudyError where none removes what the recipe asks for.
    """
    if recipe.cut != "choose":
        return [{recipe.cut: kept_of(config, recipe.cut, recipe)}]
    cuts = [cut for cut in ORDER if cut in recipe.cuts]
    shared = [
        _shared(config, some, recipe) for size in range(1, len(cuts) + 1) for some in combinations(cuts, size)
    ]
    if found := [mix for mix in shared if mix]:
        return found
    raise StudyError(
        f"target {recipe.target} of the parameters is out of reach for every combination of "
        f"{', '.join(recipe.among)} with multiple_of {recipe.multiple}; choose a larger target or a smaller "
        "multiple_of"
    )


def with_mix(config: Config, mix: Mix) -> Config:
    """The config of a model after all cuts of a mix; of layers, the first ones."""
    for cut, kept in mix.items():
        config = with_units(config, cut, kept)
    return config


def described(config: Config, mix: Mix) -> str:
    """A mix in words: "20 of 30 layers, 1,024 of 1,536 neurons"."""
    return ", ".join(f"{kept:,} of {unit_count(config, cut):,} {UNITS[cut]}" for cut, kept in mix.items())


def _shared(config: Config, cuts: Sequence[Cut], recipe: PruningRecipe) -> Mix | None:
    """The cuts remove equal shares of the parameters that go; None where one of them cannot, or need not."""
    whole = parameters(config)
    goes = whole * (1 - Decimal(str(recipe.target)))
    mix: dict[Cut, int] = {}
    for place, cut in enumerate(cuts, start=1):
        budget = whole - goes * place / len(cuts)
        kept = kept_within(config, cut, budget, _multiple(config, cut, recipe.multiple))
        if not 0 < kept < unit_count(config, cut):
            return None
        mix[cut] = kept
        config = with_units(config, cut, kept)
    return mix


def _multiple(config: Config, cut: Cut, multiple_of: int) -> int:
    """As `multiple_for`; groups too, by the numbers that they have together, so that kernels take all mixes or none."""
    if cut == "heads":
        return multiple_of // gcd(multiple_of, head_size(config))
    return multiple_for(config, cut, multiple_of)
