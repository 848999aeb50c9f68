"""Cutting hidden width: one set of channels of the residual stream, through embeddings, norms and every projection.

An RMS norm divides by the mean over all channels, so that fewer of them change it. Norms are scaled by what the mean
loses, sqrt(n / kept), and the pruned model equals the original with the removed channels at zero.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.techniques.pruning.amounts import with_units
from compression_assets.techniques.pruning.calibration import Calibration
from compression_assets.techniques.pruning.choice import Choice, Pruned, importance, most_important
from compression_assets.techniques.pruning.loss_change import Tap, loss_changes
from compression_assets.techniques.pruning.rebuild import rebuilt
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import architectures
from compression_assets.weights.architectures import Config
from compression_assets.weights.layers import decoder_layers
from compression_assets.weights.origins import Cut

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
WRITES = ("self_attn.o_proj", "mlp.down_proj")
"""Layers whose columns read hidden states, and those whose rows add to them, as transformers names them."""


@dataclass(frozen=True)
class Stream:
    """How models of a type treat hidden states. offset: norms multiply by it + weight. scaled: embeddings are
    multiplied by the root of the hidden size."""

    offset: float = 0.0
    scaled: bool = False


STREAMS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), Stream()),
    **dict.fromkeys(("gemma", "gemma3_text"), Stream(offset=1.0, scaled=True)),
}


def refuse_kind(config: Config) -> None:
    """Raise StudyError for a model whose hidden width is not cut."""
    if (kind := architectures.kind(config)) not in STREAMS:
        raise StudyError(
            f"models of type {kind!r} cannot be cut in their hidden width, only {', '.join(STREAMS)}: use another cut"
        )


def choose_channels(
    model: "PreTrainedModel", dataset: TokenDataset, recipe: PruningRecipe, keep: Collection[int], device: str
) -> dict[int, Choice]:
    """For each number in `keep` the channels that stay. Raises StudyError as `channel_importance`."""
    scores = channel_importance(model, dataset, recipe, device)
    return {number: _channels(scores, number) for number in keep}


def _channels(scores: "torch.Tensor", keep: int) -> Choice:
    kept = most_important(scores, keep)
    removed = 1.0 - (scores[kept].sum() / scores.sum()).item()
    about = {"channels_before": len(scores), "channels_after": keep, "importance_removed": removed}
    return Choice([kept], [about])


def channel_importance(
    model: "PreTrainedModel", dataset: TokenDataset, recipe: PruningRecipe, device: str
) -> "torch.Tensor":
    """Importance of every channel, fp64 [hidden_size] on the CPU; see `importance`.

    a: mean |output| of a norm over content tokens, summed over all norms of hidden states (Minitron, arXiv 2407.14679,
    section 2.2). w: Σ|weight| over all that writes or reads the channel. Raises StudyError when the data has no
    content, or the magnitudes are all zero or not finite.
    """
    if recipe.importance == "loss":
        (cut,) = channel_cuts(model, [])
        writes = [model.get_submodule(name) for name in cut.rows_of if name.endswith(WRITES)]
        writes.append(model.get_input_embeddings())
        return loss_changes(model, dataset, [[Tap(module, "output") for module in writes]])[0]
    calibration = Calibration(dataset, recipe.calibration_batch_size, device)
    norms = {model.get_submodule(name): _output for name in _norms(model)}
    activation = sum(calibration.mean_magnitudes(model, norms))
    (scores,) = importance("hidden states'", [_weight_magnitude(model)], [activation], recipe.weight_share)
    return scores


def cut_channels(model: "PreTrainedModel", choice: Choice, config: Config) -> Pruned:
    """The model of the channels chosen alone. config: content of its config.json."""
    import torch

    kept = choice.kept[0].tolist()
    wider = model.config.hidden_size / len(kept)
    stream = STREAMS[model.config.model_type]
    cuts = channel_cuts(model, kept)
    after = {**with_units(config, "hidden", len(kept)), "rms_norm_eps": model.config.rms_norm_eps * wider}
    pruned = rebuilt(model, after, {}, cuts)
    *inner, last = _norms(pruned)
    with torch.no_grad():
        if stream.scaled:
            pruned.get_input_embeddings().weight.mul_(wider**0.5)
        if not (stream.scaled and pruned.config.tie_word_embeddings):
            # Otherwise the output layer, which is the embedding, has been scaled already.
            inner.append(last)
        for name in inner:
            weight = pruned.get_submodule(name).weight
            weight.add_(stream.offset).mul_(wider**0.5).sub_(stream.offset)
    return Pruned(pruned, cuts=cuts)


def channel_cuts(model: "PreTrainedModel", kept: list[int]) -> list[Cut]:
    """What keeping these channels alone does to a model's layers; a meta model will do."""
    rows, columns = _norms(model), _ends(model)
    for prefix in decoder_layers(model):
        rows += [f"{prefix}.{name}" for name in WRITES]
        columns += [f"{prefix}.{name}" for name in READS]
    return [Cut(tuple(kept), rows_of=tuple(rows), columns_of=tuple(columns))]


def _norms(model: "PreTrainedModel") -> list[str]:
    """Names of the norms of hidden states, the one before the output layer last; not those of queries and keys."""
    prefixes = list(decoder_layers(model))
    in_layers = [
        f"{prefix}.{name}"
        for prefix in prefixes
        for name, module in model.get_submodule(prefix).named_children()
        if len(list(module.parameters())) == 1 and next(module.parameters()).ndim == 1
    ]
    return [*in_layers, f"{prefixes[0].rsplit('.', 2)[0]}.norm"]


def _ends(model: "PreTrainedModel") -> list[str]:
    """Names of the embedding and of the output layer."""
    # Of tied ones the embedding alone.
    ends = {id(end.weight): end for end in (model.get_output_embeddings(), model.get_input_embeddings())}
    return [name for name, module in model.named_modules() if any(module is end for end in ends.values())]


def _weight_magnitude(model: "PreTrainedModel") -> "torch.Tensor":
    """Sum of |weight| over columns that read a channel and rows that write it, fp64 [hidden_size] on the CPU."""
    import torch

    (cut,) = channel_cuts(model, [])
    total = torch.zeros(model.config.hidden_size, dtype=torch.float64)
    for names, dim in ((cut.columns_of, 0), (cut.rows_of, 1)):
        for name in names:
            weight = model.get_submodule(name).weight.detach()
            if weight.ndim == 2:
                total += weight.double().abs().sum(dim).cpu()
    return total


def _output(_inputs: Any, output: Any) -> Any:
    return output
