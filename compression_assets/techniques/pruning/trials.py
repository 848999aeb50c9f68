"""Making the cuts of a mix, and finding which mix of one size leaves the lowest loss before any training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning.choice import Choice, Pruned
from compression_assets.techniques.pruning.depth import choose_layers, cut_layers
from compression_assets.techniques.pruning.heads import choose_groups, cut_groups
from compression_assets.techniques.pruning.hidden import choose_channels, cut_channels
from compression_assets.techniques.pruning.loss_change import mean_loss
from compression_assets.techniques.pruning.mixes import Mix, described, with_mix
from compression_assets.techniques.pruning.recipe import Cut, PruningRecipe
from compression_assets.techniques.pruning.width import choose_neurons, cut_neurons
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.architectures import Config
from compression_assets.weights.origins import Cut as Removal
from compression_assets.weights.shapes import parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHOOSE: Mapping[Cut, Callable[..., dict[int, Choice]]] = {
    "width": choose_neurons,
    "depth": choose_layers,
    "heads": choose_groups,
    "hidden": choose_channels,
}
MAKE: Mapping[Cut, Callable[..., Pruned]] = {
    "width": cut_neurons,
    "depth": cut_layers,
    "heads": cut_groups,
    "hidden": cut_channels,
}


@dataclass(frozen=True)
class Decision:
    """The mix that is made. choices: what it keeps. tried: rows of what was compared, empty where nothing was."""

    mix: Mix
    choices: Mapping[Cut, Choice]
    tried: Sequence[Mapping[str, Any]] = ()


def decide(
    parent: Path,
    config: Config,
    tried: Sequence[Mix],
    dataset: TokenDataset,
    recipe: PruningRecipe,
    device: str,
) -> Decision:
    """Measure importance in `parent`, and of several mixes take the one with the lowest loss; of equal ones the first.

    Raises StudyError when the data has no content, or what is measured is not finite.
    """
    measured = _scoring(parent, device)
    amounts: dict[Cut, dict[int, None]] = {}
    for mix in tried:
        for cut, kept in mix.items():
            amounts.setdefault(cut, {})[kept] = None
    found = {cut: CHOOSE[cut](measured, dataset, recipe, keep, device) for cut, keep in amounts.items()}
    choices = [{cut: found[cut][kept] for cut, kept in mix.items()} for mix in tried]
    if len(tried) == 1:
        return Decision(tried[0], choices[0])
    before = mean_loss(measured, dataset)
    del measured
    losses = [_loss_after(parent, config, own, dataset, device) for own in choices]
    if not all(map(isfinite, losses)):
        raise StudyError("the loss of a pruned model is not finite; build the parent model again")
    best = losses.index(min(losses))
    rows = [{"cut": "nothing", "parameters": parameters(config), "loss": before, "taken": False}]
    rows += [
        {
            "cut": f"{' + '.join(mix)}: {described(config, mix)}",
            "parameters": parameters(with_mix(config, mix)),
            "loss": loss,
            "taken": index == best,
        }
        for index, (mix, loss) in enumerate(zip(tried, losses, strict=True))
    ]
    return Decision(tried[best], choices[best], rows)


def cut_all(model: "PreTrainedModel", choices: Mapping[Cut, Choice], config: Config) -> Pruned:
    """The model after one cut after the other. config: content of its config.json."""
    names: dict[str, str] = {}
    cuts: list[Removal] = []
    layers: list[int] | None = None
    for cut, choice in choices.items():
        if layers is not None and len(choice.kept) > 1:
            # Chosen for each layer of the model as it was.
            choice = replace(choice, kept=[choice.kept[index] for index in layers])
        made = MAKE[cut](model, choice, config)
        if cut == "depth":
            layers = choice.kept[0].tolist()
        model, config = made.model, made.model.config.to_dict()
        names |= made.names
        cuts += made.cuts
    return Pruned(model, names, cuts)


def _loss_after(
    parent: Path, config: Config, choices: Mapping[Cut, Choice], dataset: TokenDataset, device: str
) -> float:
    model = cut_all(_scoring(parent, device), choices, config).model.to(device).eval()
    return mean_loss(_exact(model, device), dataset)


def _scoring(directory: Path, device: str) -> "PreTrainedModel":
    from compression_assets.machine.precision import compute_dtype

    return _exact(checkpoints.load_for_scoring(directory, device, compute_dtype(device)), device)


def _exact(model: "PreTrainedModel", device: str) -> "PreTrainedModel":
    if device == "cpu":
        # In bfloat16 on a CPU the fused kernel's rounding depends on who else is in the batch; this one's does not.
        model.set_attn_implementation("eager")
    return model
