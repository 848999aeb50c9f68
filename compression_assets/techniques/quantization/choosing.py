"""Which number format each weight gets: measured sensitivities, the choice under the budget, and what it comes to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.store.reports import Report, no_report
from compression_assets.techniques.quantization import mixture
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.techniques.quantization.sensitivity import (
    Divergence,
    first_rows,
    sensitivities,
    stored_as,
)
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.formats.format import Format, ModelTensor


@dataclass(frozen=True)
class Chosen:
    """forms: weight name -> format, of the weights that are quantized. config: the `quantization_config` that says so.

    layers: quantized layer -> what the step reports of the choice. metadata: of the whole.
    """

    forms: Mapping[str, Format]
    config: dict[str, Any]
    layers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def choose_formats(
    directory: Path,
    tensors: Sequence[ModelTensor],
    recipe: QuantizationRecipe,
    calibration: TokenDataset | None,
    device: str = "cpu",
    report: Report = no_report,
) -> Chosen:
    """The formats of a full-precision model directory under the recipe's budget, computed in fp32 on `device`.

    Metadata: bits a linear weight as chosen; KL to the model as it came, in nats a content token, with the whole choice
    rounded to nearest: as predicted (the sum over layers) and as measured.
    Raises StudyError where there is no calibration set, or as `mixture.options`.
    """
    choice = mixture.options(tensors, recipe)
    rows = first_rows(calibration, recipe.sensitivity_tokens) if calibration is not None else []
    if not rows:
        raise StudyError("kind: mixed needs a calibration set; add data.splits.calibration to the study")
    model = checkpoints.load_full_precision(directory).to(device)
    divergence = Divergence(model, rows)
    loss = sensitivities(model, divergence, choice, report)
    chosen = mixture.best(choice, loss)
    forms = mixture.by_weight(choice, chosen)
    with stored_as(model, forms):
        measured = divergence.now()
    units = {weight.name: unit.name for unit in choice.units for weight in unit.weights}
    return Chosen(
        forms,
        mixture.config_of(choice, forms),
        layers={
            name.removesuffix(".weight"): {"format": form.name, "kl_alone": loss[units[name]][form]}
            for name, form in forms.items()
        },
        metadata={
            "bits_a_weight": choice.bits(chosen),
            "kl_predicted": sum(loss[unit][form] for unit, form in chosen.items()),
            "kl_measured": measured,
            "kl_tokens": divergence.tokens,
            "layers_in_full_precision": [
                weight.module for unit in choice.units for weight in unit.weights if weight.name not in forms
            ],
        },
    )
