"""P itself: measure what matters least, cut it, and fine-tune what is left. Each cut has a module of its own."""

import json
from pathlib import Path
from typing import Any

from compression_assets.store.reports import Check, StepReport
from compression_assets.techniques.pruning.amounts import kept_of, unit_count
from compression_assets.techniques.pruning.depth import choose_layers, cut_layers
from compression_assets.techniques.pruning.heads import choose_groups, cut_groups
from compression_assets.techniques.pruning.hidden import choose_channels, cut_channels
from compression_assets.techniques.pruning.width import choose_neurons, cut_neurons
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.origins import write_origins

CUTS = {
    "width": (choose_neurons, cut_neurons),
    "depth": (choose_layers, cut_layers),
    "heads": (choose_groups, cut_groups),
    "hidden": (choose_channels, cut_channels),
}
COUNTED_AS = {
    "width": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_key_value_heads",
    "hidden": "hidden_size",
}


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
    config, recipe = _config(step.parent), step.recipe
    before, keep = unit_count(config, recipe.cut), kept_of(config, recipe)
    choose, cut = CUTS[recipe.cut]

    measured = checkpoints.load_for_scoring(step.parent, step.device, compute_dtype(step.device))
    if step.device == "cpu":
        # In bfloat16 on a CPU the fused kernel's rounding depends on who else is in the batch; this one's does not.
        measured.set_attn_implementation("eager")
    calibration = TokenDataset.load(step.data["calibration_set"])
    choice = choose(measured, calibration, recipe, keep, step.device)
    del measured

    pruned = cut(checkpoints.load_full_precision(step.parent), choice, config)
    model, dataset = pruned.model, TokenDataset.load(step.data["finetuning_set"])
    resuming = checkpoints_in(step.scratch, model, dataset, recipe.finetune, step.seed, step.device)
    training = finetune(
        model, dataset, recipe.finetune, step.seed, step.device, step.report, resuming, step.devices
    )
    checkpoints.save_full_precision(model, step.output, tokenizer_from=step.parent, masters=True)
    write_origins(step.output, pruned.names, pruned.cuts)

    actual, counted = unit_count(_config(step.output), recipe.cut), COUNTED_AS[recipe.cut]
    how_much = f"ratio {recipe.ratio}" if recipe.target is None else f"target {recipe.target}"
    return StepReport(
        checks=(
            checkpoints.check_finite(step.output),
            checkpoints.check_size(step.output),
            Check(
                "cut_as_asked",
                actual == keep,
                f"{counted} {before} -> {actual}, asked {keep} ({how_much}, multiple of {recipe.multiple_of})",
            ),
        ),
        metadata={
            "layers": choice.layers,
            counted: actual,
            "calibration_tokens": sum(sum(row.content) for row in calibration),
            **training.metadata(),
        },
        tokens_seen=training.tokens_seen,
        peak_bytes=training.peak_bytes,
    )


def _config(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return content
