"""Cutting attention heads by whole key-value groups: importance of groups, and their removal.

A group is one key-value head with the queries that read it; they are neighbours, as transformers repeats keys and
values. Removing one changes nothing but its own contribution to the output layer of attention.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning.amounts import head_size, unit_count, with_units
from compression_assets.techniques.pruning.calibration import Calibration
from compression_assets.techniques.pruning.choice import Choice, Pruned, chosen, importance
from compression_assets.techniques.pruning.loss_change import Tap, loss_changes
from compression_assets.techniques.pruning.rebuild import rebuilt
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights.architectures import Config
from compression_assets.weights.origins import Cut

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

READ_BY = ("o_proj", "dense", "out_proj")
"""The layer that reads the heads, as transformers names it; those that make them are q_proj, k_proj and v_proj."""


@dataclass(frozen=True)
class Attention:
    """The attention of one layer. name: of its module. reads: name of the layer that reads the heads."""

    name: str
    module: Any
    reads: str
    groups: int

    @property
    def making(self) -> dict[str, Any]:
        """The layers whose rows make the heads, by name."""
        return {name: getattr(self.module, name) for name in ("q_proj", "k_proj", "v_proj")}

    @property
    def reading(self) -> Any:
        return getattr(self.module, self.reads)

    def by_group(self, values: "torch.Tensor") -> "torch.Tensor":
        """Sums [groups] of values [n] that belong to heads, in order."""
        return values.view(self.groups, -1).sum(1)

    def weight_magnitude(self) -> "torch.Tensor":
        """Sum of |weight| over the rows that make a group, fp64 [groups] on the CPU."""
        rows = [layer.weight.detach().double().abs().sum(1) for layer in self.making.values()]
        return sum((self.by_group(own) for own in rows[1:]), self.by_group(rows[0])).cpu()

    def cuts(self, kept: list[int]) -> list[Cut]:
        """What keeping these groups alone does to the layers."""
        made = [
            Cut(self._numbers(kept, layer.out_features), rows_of=(f"{self.name}.{name}",))
            for name, layer in self.making.items()
        ]
        columns = self._numbers(kept, self.reading.in_features)
        return [*made, Cut(columns, columns_of=(f"{self.name}.{self.reads}",))]

    def _numbers(self, kept: list[int], whole: int) -> tuple[int, ...]:
        """Of `whole` numbers of all groups those of the groups kept."""
        size = whole // self.groups
        return tuple(index for group in kept for index in range(group * size, (group + 1) * size))


def attentions(model: "PreTrainedModel") -> list[Attention]:
    """The attention of every layer, in order; a meta model will do.

    Raises StudyError unless each layer has one, of separate queries, keys and values with as many rows as heads need.
    """
    config = model.config.to_dict()
    groups, size, heads = unit_count(config, "heads"), head_size(config), model.config.num_attention_heads
    rows = {"q_proj": heads * size, "k_proj": groups * size, "v_proj": groups * size}
    found = [
        attention
        for name, module in model.named_modules()
        for reads in READ_BY
        if (attention := _attention(name, module, reads, groups, rows))
    ]
    if len(found) != model.config.num_hidden_layers:
        raise StudyError(
            f"models of type {model.config.model_type!r} cannot lose heads: not every layer has attention with q_proj, "
            "k_proj, v_proj and a layer that reads their heads; use cut: width or depth"
        )
    return found


def _attention(name: str, module: Any, reads: str, groups: int, rows: Mapping[str, int]) -> Attention | None:
    """The attention that a module is, if its layers have the rows given and the reading one as many columns."""
    if not all(hasattr(module, layer) for layer in (*rows, reads)):
        return None
    found = Attention(name, module, reads, groups)
    made = {name: layer.out_features for name, layer in found.making.items()}
    return found if made == rows and found.reading.in_features == rows["q_proj"] else None


def choose_groups(
    model: "PreTrainedModel", dataset: TokenDataset, recipe: PruningRecipe, keep: Collection[int], device: str
) -> dict[int, Choice]:
    """For each number in `keep` the groups that stay of every layer. Raises StudyError as `group_importance`."""
    scores = group_importance(model, dataset, recipe, device)
    return {number: chosen(scores, number, "groups") for number in keep}


def group_importance(
    model: "PreTrainedModel", dataset: TokenDataset, recipe: PruningRecipe, device: str
) -> "list[torch.Tensor]":
    """Importance of every group, fp64 [groups] on the CPU for each layer; see `importance`.

    w = Σ|rows| of its queries, key and value; a = Σ of the mean |input of the output layer| over content tokens.
    Raises StudyError when the data has no content, or a layer's magnitudes are all zero or not finite.
    """
    layers = attentions(model)
    if recipe.importance == "loss":
        return loss_changes(model, dataset, [[Tap(one.reading, "input", one.by_group)] for one in layers])
    calibration = Calibration(dataset, recipe.calibration_batch_size, device)
    means = calibration.mean_magnitudes(
        model, {layer.reading: lambda inputs, _output: inputs[0] for layer in layers}
    )
    activations = [layer.by_group(mean) for layer, mean in zip(layers, means, strict=True)]
    weights = [layer.weight_magnitude() for layer in layers]
    return importance("attention", weights, activations, recipe.weight_share)


def cut_groups(model: "PreTrainedModel", choice: Choice, config: Config) -> Pruned:
    """The model of the groups chosen alone. config: content of its config.json."""
    keep = [kept.tolist() for kept in choice.kept]
    cuts = group_cuts(model, keep)
    return Pruned(rebuilt(model, with_units(config, "heads", len(keep[0])), {}, cuts), cuts=cuts)


def group_cuts(model: "PreTrainedModel", keep: list[list[int]]) -> list[Cut]:
    """What keeping the groups `keep[layer]` does to a model's layers."""
    return [
        cut for attention, kept in zip(attentions(model), keep, strict=True) for cut in attention.cuts(kept)
    ]
