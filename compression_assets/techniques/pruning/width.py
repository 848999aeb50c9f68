"""Cutting the width of feed-forward blocks: importance of neurons, and their removal.

What a neuron is in the matrices of a block, and how it is cut out, is in blocks.py. Removing one changes nothing but
its own contribution, so the pruned model equals the original with the removed neurons at zero.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from compression_assets.techniques.pruning.blocks import FeedForward, ffn_blocks, prune_ffn, rows_making
from compression_assets.techniques.pruning.calibration import Calibration
from compression_assets.techniques.pruning.choice import Choice, Pruned, chosen, importance
from compression_assets.techniques.pruning.loss_change import Tap, loss_changes
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights.architectures import Config
from compression_assets.weights.origins import Cut

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def choose_neurons(
    model: "PreTrainedModel", dataset: TokenDataset, recipe: PruningRecipe, keep: Collection[int], device: str
) -> dict[int, Choice]:
    """For each number in `keep` the neurons that stay of every block. Raises StudyError as `ffn_importance`."""
    scores = ffn_importance(model, dataset, recipe, device)
    return {number: chosen(scores, number, "width") for number in keep}


def cut_neurons(model: "PreTrainedModel", choice: Choice, _config: Config) -> Pruned:
    """Cut every block, in place, down to the neurons chosen."""
    names = {module: name for name, module in model.named_modules()}
    cuts = [
        cut
        for block, own in zip(ffn_blocks(model), choice.kept, strict=True)
        for cut in _cuts(names[block.module], block, own)
    ]
    prune_ffn(model, choice.kept)
    return Pruned(model, cuts=cuts)


def _cuts(name: str, block: FeedForward, keep: "torch.Tensor") -> list[Cut]:
    """What cutting the block of a name down to the neurons `keep` does to its layers."""
    made = [
        Cut(
            tuple(rows_making(layer, keep, block.width).tolist()), rows_of=(f"{name}.{layer}",), columns_of=()
        )
        for layer in block.made_by
    ]
    return [*made, Cut(tuple(keep.tolist()), rows_of=(), columns_of=(f"{name}.{block.read_by}",))]


def ffn_importance(
    model: "PreTrainedModel", dataset: TokenDataset, recipe: PruningRecipe, device: str
) -> "list[torch.Tensor]":
    """Importance of every neuron, fp64 [intermediate_size] on the CPU for each layer; see `importance`.

    w = Σ|gate row| + Σ|up row| (without a gate: of the one row) and a = mean |activation| over the content tokens of
    `dataset`, by default of the input of down_proj. The authors' scripts take the gate's output; the default takes the
    activation where it matters, behind the gate, and without template and padding.
    Runs in the model's own dtype on `device`.
    Raises StudyError when the data has no content, or a layer's magnitudes are all zero or not finite.
    """
    blocks = ffn_blocks(model)
    if recipe.importance == "loss":
        return loss_changes(model, dataset, [[Tap(block.reading, "input")] for block in blocks])
    if recipe.activation == "gate_proj_output":
        seen = {block.making[0]: _gate(block) for block in blocks}
    else:
        seen = {block.reading: _first_input for block in blocks}
    calibration = Calibration(dataset, recipe.calibration_batch_size, device)
    activations = calibration.mean_magnitudes(model, seen)
    weights = [block.weight_magnitude() for block in blocks]
    return importance("feed-forward", weights, activations, recipe.weight_share)


def _gate(block: FeedForward) -> Any:
    return lambda _inputs, output: block.gate(output)


def _first_input(inputs: Any, _output: Any) -> Any:
    return inputs[0]
