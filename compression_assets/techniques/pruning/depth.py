"""Cutting depth: which layers matter least, and their removal."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning.amounts import with_layers
from compression_assets.techniques.pruning.calibration import Calibration
from compression_assets.techniques.pruning.choice import Choice, Pruned, most_important
from compression_assets.techniques.pruning.loss_change import losses_without_layers, passed_by
from compression_assets.techniques.pruning.rebuild import rebuilt
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights.architectures import Config
from compression_assets.weights.layers import decoder_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOKENS = 16
SAME = 1e-3
"""Of the norm of logits: a model and its copy differ by rounding, one that computes otherwise by more."""


def choose_layers(
    model: "PreTrainedModel", dataset: TokenDataset, recipe: PruningRecipe, keep: Collection[int], device: str
) -> dict[int, Choice]:
    """For each number in `keep` the layers that stay, by the recipe's `layers`. Of equal layers the first stay.

    Raises StudyError when the data has no content, or what is measured is not finite.
    """
    count = len(decoder_layers(model))
    calibration = Calibration(dataset, recipe.calibration_batch_size, device)
    if recipe.layers == "block":
        changes = {number: hidden_changes(model, calibration, count - number) for number in keep}
        return {number: _without_block(_finite(own), count) for number, own in changes.items()}
    if recipe.layers == "magnitude":
        scores = layer_magnitudes(model)
    elif recipe.layers == "loss":
        scores = losses_without_layers(model, dataset)
    else:
        scores = hidden_changes(model, calibration)
    return {number: _most_important_layers(_finite(scores), number) for number in keep}


def _finite(scores: "torch.Tensor") -> "torch.Tensor":
    if not scores.isfinite().all():
        raise StudyError("the importance of layers is not finite; build the parent model again")
    return scores


def _without_block(changes: "torch.Tensor", count: int) -> Choice:
    """The layers around the neighbours that change hidden states least. changes: [first layer of them]."""
    import torch

    first, removed = int(changes.argmin()), count + 1 - len(changes)
    kept = torch.tensor([*range(first), *range(first + removed, count)])
    return Choice([kept], [{"first_layer_removed": first, "change": changes[first].item()}])


def _most_important_layers(scores: "torch.Tensor", keep: int) -> Choice:
    kept = most_important(scores, keep)
    staying = set(kept.tolist())
    return Choice(
        [kept],
        [
            {"layer": index, "importance": score, "kept": index in staying}
            for index, score in enumerate(scores.tolist())
        ],
    )


def cut_layers(model: "PreTrainedModel", choice: Choice, config: Config) -> Pruned:
    """The model of the layers chosen alone. config: content of its config.json.

    Raises StudyError where it is not the old model with the others passed by: where a layer computes by its number.
    That is seen in full precision only.
    """
    import torch

    kept = choice.kept[0].tolist()
    names = layer_names(model, kept)
    new = rebuilt(model, with_layers(config, kept), names, ())
    if model.dtype in (torch.float32, torch.float64) and model.device.type != "meta":
        _require_same(model, new, kept)
    return Pruned(new, names)


def _require_same(model: "PreTrainedModel", new: "PreTrainedModel", kept: list[int]) -> None:
    others = [layer for index, layer in enumerate(decoder_layers(model).values()) if index not in kept]
    with passed_by(others):
        before = _some_logits(model)
    # NaN is for whoever scores the model to report.
    if (_some_logits(new) - before).norm() > SAME * before.norm():
        raise StudyError(
            f"models of type {model.config.model_type!r} cannot be cut in depth: what a layer of theirs computes "
            "depends on its number, which a cut changes; use cut: width"
        )


def _some_logits(model: "PreTrainedModel") -> "torch.Tensor":
    import torch

    ids = torch.arange(TOKENS, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits.float().cpu()


def layer_names(model: "PreTrainedModel", kept: list[int]) -> dict[str, str]:
    """Name of a layer in the new model -> what it was called."""
    layers = list(decoder_layers(model))
    return {layers[new]: layers[old] for new, old in enumerate(kept)}


def hidden_changes(model: "PreTrainedModel", calibration: Calibration, length: int = 1) -> "torch.Tensor":
    """How much each `length` neighbouring layers change hidden states, fp64 [layers - length + 1] on the CPU.

    1 - cos(their input, their output), mean over content tokens: of one layer ShortGPT's block influence (arXiv
    2403.03853, equation 1).
    """
    import torch

    layers = list(decoder_layers(model).values())
    sums = torch.zeros(len(layers) - length + 1, dtype=torch.float64)
    states: list[torch.Tensor] = []
    """Input of the first layer and output of each so far, in the pass that runs now."""

    def begin(_module: Any, inputs: Any, others: Any) -> None:
        states[:] = [calibration.content(inputs[0] if inputs else others["hidden_states"])]

    def add(_module: Any, _inputs: Any, output: Any) -> None:
        states.append(calibration.content(output[0] if isinstance(output, tuple) else output))
        first = len(states) - 1 - length
        if first >= 0:
            pair = states[first].double(), states[-1].double()
            sums[first] += (1.0 - torch.nn.functional.cosine_similarity(*pair, dim=-1)).sum().cpu()

    hooks = [layers[0].register_forward_pre_hook(begin, with_kwargs=True)]
    hooks += [layer.register_forward_hook(add) for layer in layers]
    try:
        calibration.run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return sums / calibration.tokens


def layer_magnitudes(model: "PreTrainedModel") -> "torch.Tensor":
    """Sum of |weight| of each layer, fp64 [layers] on the CPU."""
    import torch

    return torch.stack(
        [
            torch.stack([weight.detach().double().abs().sum() for weight in layer.parameters()]).sum().cpu()
            for layer in decoder_layers(model).values()
        ]
    )
