"""Q with a number format for each layer, under a budget: what there is to choose from, and the choice.

Layers that engines run as one matrix (vLLM fuses queries, keys and values, and gate and up) get the same format.
How much each format hurts each layer is measured in sensitivity.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.techniques.quantization.recipe import MIB, QuantizationRecipe
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.formats.format import Format, ModelTensor
from compression_assets.weights.formats.grouped_integer import GroupedInteger, mixture_config
from compression_assets.weights.shapes import Config, tensors

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections of the same inputs, as transformers names them."""
SHARE_NOT_PROVEN = 1e-4
"""By which a choice may be worse than the best one: the knapsack is solved by branch and bound."""
EXCEEDED = 1e-6
"""By which HiGHS may exceed a limit."""


@dataclass(frozen=True)
class Unit:
    """Linear weights that share a format. sizes: format -> bytes in a file, of the formats that can store all."""

    name: str
    weights: tuple[ModelTensor, ...]
    sizes: Mapping[Format, int]

    @property
    def parameters(self) -> int:
        return sum(weight.size for weight in self.weights)


@dataclass(frozen=True)
class Options:
    """units: in the order of the model. budget: bytes that all of them may take."""

    units: Sequence[Unit]
    budget: int

    def bits(self, chosen: Mapping[str, Format]) -> float:
        """Bits a weight, scales included. chosen: unit -> format."""
        size = sum(unit.sizes[chosen[unit.name]] for unit in self.units)
        return 8 * size / sum(unit.parameters for unit in self.units)


def options(model: Iterable[ModelTensor], recipe: QuantizationRecipe) -> Options:
    """The choice that a mixed recipe leaves for a model of these tensors.

    Raises StudyError where a weight fits none of the formats, or where the budget is below the smallest formats or not
    below the largest.
    """
    model = list(model)
    units = _units([tensor for tensor in model if tensor.linear], recipe)
    parameters = sum(unit.parameters for unit in units)
    if recipe.bits is not None:
        asked, budget = f"bits: {recipe.bits:g}", int(recipe.bits * parameters / 8)
    else:
        assert recipe.max_mib is not None
        others = sum(BF16().stored_bytes(tensor.shape) for tensor in model if not tensor.linear)
        asked, budget = f"max_mib: {recipe.max_mib:g}", int(recipe.max_mib * MIB) - others
    least, most = (sum(end(unit.sizes.values()) for unit in units) for end in (min, max))
    if not least <= budget < most:
        low, high = (8 * size / parameters for size in (least, most))
        raise StudyError(
            f"{asked} is {8 * budget / parameters:.2f} bits a linear weight, scales included, and the formats can be "
            f"mixed from {low:.2f} to below {high:.2f}: choose a budget between, or other formats"
        )
    return Options(units, budget)


def filled(choice: Options) -> dict[str, Format]:
    """Unit -> format, before anything is measured: the smallest, then larger ones from the first layer on.

    It is about as large as what will be chosen: both end within one layer of the budget.
    """
    chosen = {unit.name: min(unit.sizes, key=lambda form: unit.sizes[form]) for unit in choice.units}
    left = choice.budget - sum(unit.sizes[chosen[unit.name]] for unit in choice.units)
    for unit in choice.units:
        for form, size in sorted(unit.sizes.items(), key=lambda item: item[1]):
            more = size - unit.sizes[chosen[unit.name]]
            if 0 < more <= left:
                chosen[unit.name] = form
                left -= more
    return chosen


def best(choice: Options, loss: Mapping[str, Mapping[Format, float]]) -> dict[str, Format]:
    """Unit -> format, such that the sum of losses is least within the budget: a multiple-choice knapsack, by HiGHS.

    loss: unit -> format -> what it costs, in any unit.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_array

    pairs = [(index, form) for index, unit in enumerate(choice.units) for form in unit.sizes]
    one_each = lil_array((len(choice.units), len(pairs)))
    for column, (index, _) in enumerate(pairs):
        one_each[index, column] = 1
    costs = np.array([loss[choice.units[index].name][form] for index, form in pairs])
    sizes = np.array([choice.units[index].sizes[form] for index, form in pairs], dtype=np.float64)
    for limit in (1.0, 1.0 - 2 * EXCEEDED):
        found = milp(
            costs / (costs.max() or 1.0),
            integrality=np.ones(len(pairs)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each.tocsr(), 1, 1),
                LinearConstraint(sizes / choice.budget, -np.inf, limit),
            ],
            options={"mip_rel_gap": SHARE_NOT_PROVEN},
        )
        if found.x is None:
            raise StudyError(f"no choice of formats was found ({found.message}): choose another budget")
        if sizes[found.x > 0.5].sum() <= choice.budget:
            break
    return {
        choice.units[index].name: form
        for (index, form), taken in zip(pairs, found.x, strict=True)
        if taken > 0.5
    }


def by_weight(choice: Options, chosen: Mapping[str, Format]) -> dict[str, GroupedInteger]:
    """Weight name -> format, of the weights that are quantized."""
    return {
        weight.name: form
        for unit in choice.units
        for weight in unit.weights
        if isinstance(form := chosen[unit.name], GroupedInteger)
    }


def config_of(choice: Options, forms: Mapping[str, GroupedInteger]) -> dict[str, Any]:
    """The `quantization_config` that says which weight is in which format. forms: as `by_weight` has them."""
    layers = [weight for unit in choice.units for weight in unit.weights]
    return mixture_config({weight.module: forms.get(weight.name) for weight in layers})


def expected_config(config: Config, recipe: QuantizationRecipe) -> Config:
    """The config of a model that a mixed recipe leaves, before anything is measured. StudyError as `options`."""
    choice = options(tensors(config), recipe)
    return {**config, "quantization_config": config_of(choice, by_weight(choice, filled(choice)))}


def _units(linear: Sequence[ModelTensor], recipe: QuantizationRecipe) -> list[Unit]:
    members: dict[str, list[ModelTensor]] = {}
    for tensor in linear:
        members.setdefault(_unit_of(tensor.module), []).append(tensor)
    return [_unit(name, weights, recipe.candidates) for name, weights in members.items()]


def _unit(name: str, weights: Sequence[ModelTensor], candidates: Sequence[Format]) -> Unit:
    refusals = {
        form: next(filter(None, (form.refusal(one.shape) for one in weights)), "") for form in candidates
    }
    sizes = {
        form: sum(form.stored_bytes(weight.shape) for weight in weights)
        for form, reason in refusals.items()
        if not reason
    }
    if not sizes:
        reasons = "; ".join(f"{form.title}: {reason}" for form, reason in refusals.items())
        raise StudyError(f"none of the formats can store {name} ({reasons})")
    return Unit(name, tuple(weights), sizes)


def _unit_of(layer: str) -> str:
    """model.layers.0.mlp.up_proj is of model.layers.0.mlp.gate_proj+up_proj."""
    parent, _, last = layer.rpartition(".")
    fused = next((names for names in FUSED if last in names), (last,))
    return f"{parent}.{'+'.join(fused)}"
