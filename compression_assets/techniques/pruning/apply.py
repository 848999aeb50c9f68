"""Structured pruning of feed-forward blocks: importance, selection, and P itself.

What a neuron is in the matrices of a block, and how it is cut out, is in blocks.py. Removing one changes nothing but
its own contribution, so the pruned model equals the original with the removed neurons at zero.
"""

from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.store.reports import Check, StepReport
from compression_assets.techniques.pruning.blocks import (
    FeedForward,
    ffn_blocks,
    prune_ffn,
    rows_making,
    width_key,
)
from compression_assets.techniques.pruning.recipe import PruningRecipe, kept_width
from compression_assets.techniques.step import StepInputs
from compression_assets.text.batches import collate, length_buckets
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.origins import Cut, write_origins

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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
    cuts = [
        cut
        for block, own in zip(ffn_blocks(model), keep, strict=True)
        for cut in _cuts(names[block.module], block, own)
    ]
    prune_ffn(model, keep)
    dataset = TokenDataset.load(step.data["finetuning_set"])
    recipe = step.recipe.finetune
    resuming = checkpoints_in(step.scratch, model, dataset, recipe, step.seed, step.device)
    training = finetune(model, dataset, recipe, step.seed, step.device, step.report, resuming)
    checkpoints.save_full_precision(model, step.output, tokenizer_from=step.parent, masters=True)
    write_origins(step.output, cuts=cuts)

    written = checkpoints.read_config(step.output)
    actual = getattr(written, width_key(written))
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


def intermediate_size(model: "PreTrainedModel") -> int:
    """Width of the feed-forward blocks; StudyError when the model has none that can be pruned."""
    width_key(model.config)
    return ffn_blocks(model)[0].width


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
    """Importance of every neuron, fp64 [intermediate_size] on the CPU for each layer.

    s · w / max(w) + (1 - s) · a / max(a) with s = weight_share, w = Σ|gate row| + Σ|up row| (without a gate: of the one
    row) and
    a = mean |activation| over the content tokens of `dataset`, by default of the input of down_proj. The form is the
    authors' scripts'; the activation is taken where it matters, behind the gate, and without template and padding.
    Runs in the model's own dtype on `device`.
    Raises StudyError when the data has no content, or a layer's magnitudes are all zero or not finite.
    """
    weights = [block.weight_magnitude() for block in ffn_blocks(model)]
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
    sums = [torch.zeros(block.width, dtype=torch.float64) for block in blocks]
    content = torch.empty(0)

    def listen(layer: int, block: FeedForward) -> Any:
        def add(values: "torch.Tensor") -> None:
            # fp32 within a batch, fp64 across batches: bf16 sums would depend on the batch size.
            # Some models (OPT) run their blocks on all tokens in one dimension.
            seen = values.reshape(*content.shape, -1)[content]
            sums[layer] += seen.float().abs().sum(0).double().cpu()

        if where == "gate_proj_output":
            return block.making[0].register_forward_hook(
                lambda _module, _inputs, output: add(block.gate(output))
            )
        return block.reading.register_forward_pre_hook(lambda _module, inputs: add(inputs[0]))

    hooks = [listen(layer, block) for layer, block in enumerate(blocks)]
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
