"""Structured pruning of gated feed-forward blocks: importance, selection, rebuilding, and P itself.

A neuron j of a block is row j of gate_proj and up_proj with column j of down_proj. Removing it changes
nothing but its own contribution, so the pruned model equals the original with the removed neurons at zero.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.store.reports import Check, StepReport
from compression_assets.techniques.pruning.recipe import PruningRecipe, kept_width
from compression_assets.techniques.step import StepInputs
from compression_assets.text.batches import collate, length_buckets
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.origins import Cut, write_origins

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def prune_step(step: StepInputs) -> StepReport:
    """Prune `step.parent`, fine-tune, and write bf16 weights with fp32 masters into `step.output`.

    Importance is measured on the published 16-bit weights, which are what the model computes with; the
    cut itself is made in the masters. An interrupted step is resumed in its training; importance is
    measured again.
    """
    from compression_assets.machine.precision import compute_dtype
    from compression_assets.training.finetuning import finetune
    from compression_assets.training.resuming import checkpoints_in

    checkpoints.refuse_quantized(step.parent)
    measured = checkpoints.load_for_scoring(step.parent, step.device, compute_dtype(step.device))
    if step.device == "cpu":
        # In bfloat16 on a CPU the fused kernel's rounding depends on who else is in the batch; this one's does not.
        measured.set_attn_implementation("eager")
    before = intermediate_size(measured)
    after = kept_width(before, step.recipe.ratio, step.recipe.multiple_of)
    calibration = TokenDataset.load(step.data["calibration_set"])
    importance = ffn_importance(measured, calibration, step.recipe, step.device)
    del measured

    model = checkpoints.load_full_precision(step.parent)
    keep = [most_important(scores, after) for scores in importance]
    names = {module: name for name, module in model.named_modules()}
    cuts = [_cut(names[block], own) for block, own in zip(ffn_blocks(model), keep, strict=True)]
    prune_ffn(model, keep)
    dataset = TokenDataset.load(step.data["finetuning_set"])
    recipe = step.recipe.finetune
    resuming = checkpoints_in(step.scratch, model, dataset, recipe, step.seed, step.device)
    training = finetune(model, dataset, recipe, step.seed, step.device, step.report, resuming)
    checkpoints.save_full_precision(model, step.output, tokenizer_from=step.parent, masters=True)
    write_origins(step.output, cuts=cuts)

    actual = checkpoints.read_config(step.output).intermediate_size
    return StepReport(
        checks=(
            checkpoints.check_finite(step.output),
            checkpoints.check_size(step.output),
            Check(
                "width_as_asked",
                actual == after,
                f"intermediate size {before} -> {actual}, asked {after} (ratio {step.recipe.ratio}, "
                f"multiple of {step.recipe.multiple_of})",
            ),
        ),
        metadata={
            "layers": [
                {
                    "layer": index,
                    "width_before": before,
                    "width_after": after,
                    "importance_removed": 1.0 - (scores[kept].sum() / scores.sum()).item(),
                }
                for index, (scores, kept) in enumerate(zip(importance, keep, strict=True))
            ],
            "intermediate_size": actual,
            "calibration_tokens": sum(sum(row.content) for row in calibration),
            **training.metadata(),
        },
        tokens_seen=training.tokens_seen,
    )


def ffn_blocks(model: "PreTrainedModel") -> "list[torch.nn.Module]":
    """The gated feed-forward block of every layer, in order.

    Raises StudyError unless each layer has one, with gate_proj, up_proj and down_proj of the config's width.
    """
    from torch.nn import Linear

    layers, width = model.config.num_hidden_layers, getattr(model.config, "intermediate_size", None)
    blocks = [
        module
        for module in model.modules()
        if all(isinstance(getattr(module, projection, None), Linear) for projection in PROJECTIONS)
    ]
    if len(blocks) != layers or any(_widths(block) != {width} for block in blocks):
        raise StudyError(
            f"models of type {model.config.model_type!r} cannot be pruned: not every layer has one "
            "feed-forward block of gate_proj, up_proj and down_proj as wide as config.intermediate_size"
        )
    return blocks


def intermediate_size(model: "PreTrainedModel") -> int:
    """Width of the feed-forward blocks; StudyError when the model has none that can be pruned."""
    ffn_blocks(model)
    return int(model.config.intermediate_size)


def _cut(block: str, keep: "torch.Tensor") -> Cut:
    """What cutting a block by name down to the neurons `keep` does to its layers."""
    gate, up, down = (f"{block}.{projection}" for projection in PROJECTIONS)
    return Cut(tuple(keep.tolist()), rows_of=(gate, up), columns_of=(down,))


def ffn_importance(
    model: "PreTrainedModel", dataset: TokenDataset, recipe: PruningRecipe, device: str
) -> "list[torch.Tensor]":
    """Importance of every neuron, fp64 [intermediate_size] on the CPU for each layer.

    s · w / max(w) + (1 - s) · a / max(a) with s = weight_share, w = Σ|gate row| + Σ|up row| and
    a = mean |activation| over the content tokens of `dataset`, by default of the input of down_proj. The form is the
    authors' scripts'; the activation is taken where it matters, behind the gate, and without template and padding.
    Runs in the model's own dtype on `device`.
    Raises StudyError when the data has no content, or a layer's magnitudes are all zero or not finite.
    """
    weights = [_weight_magnitude(block) for block in ffn_blocks(model)]
    activations = _activation_magnitudes(
        model, dataset, recipe.calibration_batch_size, device, recipe.activation
    )
    scores = []
    for layer, (weight, activation) in enumerate(zip(weights, activations, strict=True)):
        for name, magnitude in (("weights", weight), ("activations", activation)):
            if not (magnitude.isfinite().all() and magnitude.max() > 0):
                raise StudyError(
                    f"the feed-forward {name} of layer {layer} are all zero or not finite; "
                    "build the parent model again"
                )
        share = recipe.weight_share
        scores.append(share * weight / weight.max() + (1 - share) * activation / activation.max())
    return scores


def most_important(scores: "torch.Tensor", n: int) -> "torch.Tensor":
    """Indices int64 [n] of the n highest scores in their original order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:n].sort().values


def prune_ffn(model: "PreTrainedModel", keep: "Sequence[torch.Tensor]") -> None:
    """Rebuild every feed-forward block, in place, from the neurons `keep[layer]` (int64 [n], one n for all).

    Updates config.intermediate_size. Neurons stay in the order of `keep`; biases are handled.
    """
    (width,) = {len(kept) for kept in keep}
    for block, kept in zip(ffn_blocks(model), keep, strict=True):
        for projection in ("gate_proj", "up_proj"):
            _select(getattr(block, projection), kept, dim=0)
        _select(block.down_proj, kept, dim=1)
        if hasattr(block, "intermediate_size"):
            block.intermediate_size = width
    model.config.intermediate_size = width


def _select(linear: Any, kept: "torch.Tensor", dim: int) -> None:
    """Keep rows (dim 0) or columns (dim 1) of a linear layer; the bias belongs to the rows."""
    from torch.nn import Parameter

    kept = kept.to(linear.weight.device)
    linear.weight = Parameter(linear.weight.detach().index_select(dim, kept))
    if dim == 0 and linear.bias is not None:
        linear.bias = Parameter(linear.bias.detach().index_select(0, kept))
    linear.out_features, linear.in_features = linear.weight.shape


def _widths(block: Any) -> set[int]:
    return {block.gate_proj.out_features, block.up_proj.out_features, block.down_proj.in_features}


def _weight_magnitude(block: Any) -> "torch.Tensor":
    gate, up = block.gate_proj.weight.detach(), block.up_proj.weight.detach()
    return (gate.double().abs().sum(1) + up.double().abs().sum(1)).cpu()


def _activation_magnitudes(
    model: "PreTrainedModel",
    dataset: TokenDataset,
    batch_size: int,
    device: str,
    where: str = "down_proj_input",
) -> "list[torch.Tensor]":
    """Mean |activation| over content tokens, fp64 [intermediate_size] for each layer."""
    import torch

    n_content = sum(sum(row.content) for row in dataset)
    if not n_content:
        raise StudyError("the calibration set has no content tokens; ask for more calibration conversations")
    blocks = ffn_blocks(model)
    sums = [torch.zeros(model.config.intermediate_size, dtype=torch.float64) for _ in blocks]
    content = torch.empty(0)

    def listen(layer: int) -> Any:
        def add(values: "torch.Tensor") -> None:
            # fp32 within a batch, fp64 across batches: bf16 sums would depend on the batch size.
            sums[layer] += values[content].float().abs().sum(0).double().cpu()

        if where == "gate_proj_output":
            return blocks[layer].gate_proj.register_forward_hook(lambda _module, _inputs, output: add(output))
        return blocks[layer].down_proj.register_forward_pre_hook(lambda _module, inputs: add(inputs[0]))

    hooks = [listen(layer) for layer in range(len(blocks))]
    try:
        with torch.inference_mode():
            for indices in length_buckets(dataset, batch_size, seed=None):
                rows = [dataset[index] for index in indices]
                batch = collate(rows, pad_id=0).to(device)
                content = _content_mask([row.content for row in rows]).to(device)
                model.base_model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                )
    finally:
        for hook in hooks:
            hook.remove()
    return [total / n_content for total in sums]


def _content_mask(rows: list[list[bool]]) -> "torch.Tensor":
    """Content flags padded on the right, bool [B, L]. `Batch.predicts` would lose a row's first token."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([row + [False] * (longest - len(row)) for row in rows])
