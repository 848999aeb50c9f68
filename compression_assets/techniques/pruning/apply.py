"""P itself: measure what matters least, cut it, and fine-tune what is left. Each cut has a module of its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compression_assets.store.reports import Check, StepReport
from compression_assets.techniques.pruning.amounts import unit_count
from compression_assets.techniques.pruning.choice import Choice
from compression_assets.techniques.pruning.mixes import mixes
from compression_assets.techniques.pruning.recipe import Cut
from compression_assets.techniques.pruning.trials import Decision, cut_all, decide
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.origins import write_origins

COUNTED_AS: Mapping[Cut, str] = {
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
    from compression_assets.training.finetuning import finetune
    from compression_assets.training.resuming import checkpoints_in

    checkpoints.refuse_quantized(step.parent)
    config, recipe = _config(step.parent), step.recipe
    calibration = TokenDataset.load(step.data["calibration_set"])
    decision = decide(step.parent, config, mixes(config, recipe), calibration, recipe, step.device)

    pruned = cut_all(checkpoints.load_full_precision(step.parent), decision.choices, config)
    model, dataset = pruned.model, TokenDataset.load(step.data["finetuning_set"])
    resuming = checkpoints_in(step.scratch, model, dataset, recipe.finetune, step.seed, step.device)
    training = finetune(
        model, dataset, recipe.finetune, step.seed, step.device, step.report, resuming, step.devices
    )
    checkpoints.save_full_precision(model, step.output, tokenizer_from=step.parent, masters=True)
    write_origins(step.output, pruned.names, pruned.cuts)

    after = _config(step.output)
    actual = {cut: unit_count(after, cut) for cut in decision.mix}
    counted = ", ".join(
        f"{COUNTED_AS[cut]} {unit_count(config, cut)} -> {actual[cut]}, asked {kept}"
        for cut, kept in decision.mix.items()
    )
    how_much = f"ratio {recipe.ratio}" if recipe.target is None else f"target {recipe.target}"
    return StepReport(
        checks=(
            checkpoints.check_finite(step.output),
            checkpoints.check_size(step.output),
            Check(
                "cut_as_asked",
                actual == decision.mix,
                f"{counted} ({how_much}, multiple of {recipe.multiple})",
            ),
        ),
        metadata={
            "layers": _layers(decision.choices),
            **{COUNTED_AS[cut]: kept for cut, kept in actual.items()},
            **_tried(decision),
            "calibration_tokens": sum(sum(row.content) for row in calibration),
            **training.metadata(),
        },
        tokens_seen=training.tokens_seen,
        peak_bytes=training.peak_bytes,
    )


def _layers(choices: Mapping[Cut, Choice]) -> list[dict[str, Any]]:
    """What each cut reports; of several, rows of the same columns, as tables want them."""
    if len(choices) == 1:
        return next(iter(choices.values())).layers
    rows = [{"cut": cut, **row} for cut, choice in choices.items() for row in choice.layers]
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column) for column in columns} for row in rows]


def _tried(decision: Decision) -> dict[str, Any]:
    """The mixes that were compared, and which was taken."""
    if not decision.tried:
        return {}
    taken = next(row for row in decision.tried if row["taken"])
    summary = f"took {taken['cut']}: loss {taken['loss']:.3f}, the lowest of {len(decision.tried) - 1} tried"
    return {"summary": summary, "tried": list(decision.tried)}


def _config(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return content
