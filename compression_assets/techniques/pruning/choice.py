"""What all cuts have in common: what is kept, by which score, and the model that it makes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.weights.origins import Cut

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Choice:
    """kept: for each layer the units kept of it, ascending; of whole layers one list. layers: what the step reports."""

    kept: "list[torch.Tensor]"
    layers: list[dict[str, Any]]


@dataclass(frozen=True)
class Pruned:
    """A model after a cut, and what its layers were: see `weights.origins`."""

    model: "PreTrainedModel"
    names: Mapping[str, str] = field(default_factory=dict)
    cuts: Sequence[Cut] = ()


def most_important(scores: "torch.Tensor", n: int) -> "torch.Tensor":
    """Indices int64 [n] of the n highest scores in their original order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:n].sort().values


def importance(
    what: str, weights: "list[torch.Tensor]", activations: "list[torch.Tensor]", share: float
) -> "list[torch.Tensor]":
    """s · w / max(w) + (1 - s) · a / max(a) for every unit of each layer, with s = share. The authors' scripts' form.

    Raises StudyError when a layer's magnitudes are all zero or not finite. what: "feed-forward" or "attention".
    """
    scores = []
    for layer, (weight, activation) in enumerate(zip(weights, activations, strict=True)):
        for name, magnitude in (("weights", weight), ("activations", activation)):
            if not (magnitude.isfinite().all() and magnitude.max() > 0):
                raise StudyError(
                    f"the {what} {name} of layer {layer} are all zero or not finite; "
                    "build the parent model again"
                )
        scores.append(share * weight / weight.max() + (1 - share) * activation / activation.max())
    return scores


def chosen(scores: "list[torch.Tensor]", keep: int, units: str) -> Choice:
    """The `keep` most important units of every layer."""
    kept = [most_important(own, keep) for own in scores]
    layers = [
        {
            "layer": index,
            f"{units}_before": len(own),
            f"{units}_after": keep,
            "importance_removed": 1.0 - (own[of_it].sum() / own.sum()).item(),
        }
        for index, (own, of_it) in enumerate(zip(scores, kept, strict=True))
    ]
    return Choice(kept, layers)
