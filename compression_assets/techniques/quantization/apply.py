"""Quantization of a model directory into a number format. The formats themselves are in weights/formats."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.store.reports import Check, Report, StepReport, no_report
from compression_assets.techniques.quantization import calibrated
from compression_assets.techniques.quantization.choosing import Chosen, choose_formats
from compression_assets.techniques.quantization.recipe import (
    CALIBRATION_SET,
    GRID,
    QuantizationRecipe,
    too_much_uncovered,
)
from compression_assets.techniques.quantization.rounding import Rounding, quantize
from compression_assets.techniques.step import StepInputs
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.architectures import uncovered_share_of
from compression_assets.weights.files import read_tensors, write_weights
from compression_assets.weights.first_answer import answer_or_reason
from compression_assets.weights.formats.format import Format, Shape, Stored
from compression_assets.weights.layers import linear_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Uniformly spread over its bin of width d, a weight is d / sqrt(12) off the nearest value in the root mean square and
# d / sqrt(6) off one that is drawn.
# What gptq rounds away in one weight it makes up for in others, which move further: measured 0.13 on average, to 0.18.
# Its measure is the output, which has to be no worse than by nearest rounding.
ERROR_BESIDE_NEAREST = {"nearest": 1.0, "stochastic": 2**0.5, "gptq": 10 / 3}


def quantize_step(step: StepInputs) -> StepReport:
    """Quantize `step.parent` into `step.output`; see `quantize_checkpoint`."""
    return quantize_checkpoint(
        step.parent,
        step.output,
        step.recipe,
        step.device,
        step.report,
        seed=f"{step.seed} {'-'.join(step.path)}",
        grid=step.models.get(GRID),
        calibration=TokenDataset.load(step.data[CALIBRATION_SET]) if CALIBRATION_SET in step.data else None,
    )


def quantize_checkpoint(
    source: Path,
    target: Path,
    recipe: QuantizationRecipe,
    device: str = "cpu",
    report: Report = no_report,
    *,
    seed: str = "",
    grid: Path | None = None,
    calibration: TokenDataset | None = None,
) -> StepReport:
    """Write the checkpoint that transformers and the library of the format would write, one tensor at a time.

    seed: of stochastic rounding. grid: quantized directory whose absmax the recipe keeps. calibration: what gptq
    looks at, and what the formats of a mixture are chosen by.

    Codes come from the fp32 masters when the source has them, else from its published weights. Embeddings,
    norms, biases and the output embedding stay in bf16. Metadata: "layers" with each layer's relative
    Frobenius error read back from the written file (and, where absmax is not the weight's own maximum or rounding is
    meant to be unbiased, what lies beyond absmax; with gptq, each layer's relative output error on the calibration set
    beside that of nearest rounding); "answers_on" with the kinds of device it runs on.
    Raises StudyError when the source is quantized, damaged, or has no linear layers, when there is no grid to keep,
    when gptq or a mixture has no calibration set, when gptq does not know the model's layers, or as `mixture.options`.
    """
    checkpoints.refuse_quantized(source)
    config = checkpoints.read_config(source)
    model = checkpoints.empty_model(config)
    layers = linear_layers(model)
    uncovered = uncovered_share_of(model)
    if reason := too_much_uncovered(config.model_type, uncovered, recipe):
        raise StudyError(f"{source}: {reason}")
    kept = _kept_grid(recipe, source, grid, model)
    chosen = _formats(source, model, recipe, calibration, device, report)
    by_output = calibrated.ByOutput()
    if recipe.by_output:
        by_output = calibrated.quantize_by_output(source, calibration, chosen.forms, kept, device, report)
    rounding = Rounding(recipe.rounding, recipe.format, seed)
    weights = _quantized_tensors(source, model, chosen.forms, rounding, kept, by_output.parts, device, report)
    write_weights(dict(weights), target)
    _write_config(source, target, chosen.config)
    checkpoints.copy_generation_config(source, target)
    checkpoints.copy_tokenizer(source, target)

    errors = relative_errors(source, target)
    for layer, error in by_output.errors.items():
        errors[layer] |= error
    means = {
        f"{name}_mean": fmean(error[name] for error in errors.values())
        for name in next(iter(errors.values()))
    }
    answers = answer_or_reason(target, model, device, recipe.answer_tokens)
    return StepReport(
        checks=(
            checkpoints.check_finite(target),
            checkpoints.check_size(target),
            _check_errors(recipe, chosen.forms, errors, means),
        ),
        metadata={
            "layers": [
                {"layer": layer, **error, **chosen.layers.get(layer, {})} for layer, error in errors.items()
            ],
            **means,
            **chosen.metadata,
            "relative_error_max": max(error["relative_error"] for error in errors.values()),
            "covered_share": 1.0 - uncovered,
            "layers_with_kept_absmax": sum(f"{layer}.weight" in kept for layer in layers),
            "tensor_bytes": checkpoints.tensor_bytes(target),
            **answers,
        },
    )


def _formats(
    source: Path,
    model: "PreTrainedModel",
    recipe: QuantizationRecipe,
    calibration: TokenDataset | None,
    device: str,
    report: Report,
) -> Chosen:
    """What each weight of a (meta) model becomes."""
    tensors = checkpoints.model_tensors(model)
    if recipe.mixed:
        return choose_formats(source, tensors, recipe, calibration, device, report)
    form = recipe.format
    return Chosen({tensor.name: form for tensor in tensors if form.covers(tensor)}, form.to_config())


def _check_errors(
    recipe: QuantizationRecipe,
    forms: Mapping[str, Format],
    errors: dict[str, dict[str, float]],
    means: dict[str, float],
) -> Check:
    """Every weight within the limit of its rounding; by layer output, outputs no worse than nearest rounding's."""
    beside_nearest = ERROR_BESIDE_NEAREST[recipe.rounding]
    limits = {layer: forms[f"{layer}.weight"].max_relative_error * beside_nearest for layer in errors}
    worst = max(errors, key=lambda layer: errors[layer]["relative_error"] / limits[layer])
    largest = errors[worst]["relative_error"]
    passed = largest < limits[worst]
    detail = (
        f"relative error {means['relative_error_mean']:.4f} on average, at most {largest:.4f} ({worst}), "
        f"limit {limits[worst]}"
    )
    if "output_error_mean" in means:
        passed &= means["output_error_mean"] <= means["output_error_of_nearest_mean"]
        detail += (
            f"; error of layer outputs {means['output_error_mean']:.4f} on average, by nearest rounding "
            f"{means['output_error_of_nearest_mean']:.4f}"
        )
    return Check("dequantization_error", passed, detail)


def relative_errors(full_precision: Path, quantized: Path) -> dict[str, dict[str, float]]:
    """Layer -> errors of a written quantized directory against what it was made from.

    relative_error: ||W - Ŵ|| / ||W|| (Frobenius). clipped_share, clipping_bias: see `Format.clipping`.
    """
    originals = dict(read_tensors(checkpoints.masters_or_published(full_precision)))
    errors = {}
    for stored in checkpoints.quantized_weights(quantized):
        weight = originals[stored.name].float()
        # A layer of zeros is stored exactly; its error is 0, not 0 / 0.
        norm = weight.norm().item() or 1.0
        share, bias = stored.format.clipping(weight, stored.parts)
        errors[stored.name.removesuffix(".weight")] = {
            "relative_error": (stored.dequantized() - weight).norm().item() / norm,
            "clipped_share": share,
            "clipping_bias": bias,
        }
    return errors


def _quantized_tensors(
    source: Path,
    model: "PreTrainedModel",
    forms: Mapping[str, Format],
    rounding: Rounding,
    grid: "Mapping[str, Stored]",
    by_output: "Mapping[str, Stored]",
    device: str,
    report: Report,
) -> "Iterator[tuple[str, torch.Tensor]]":
    done, directory = 0, checkpoints.masters_or_published(source)
    for name, tensor in checkpoints.fitting(directory, read_tensors(directory), model):
        if name not in forms:
            yield name, checkpoints.published(tensor)
            continue
        if not tensor.isfinite().all():
            raise StudyError(f"{name} in {source} is not finite; build this model again")
        form = forms[name]
        own = replace(rounding, form=form)
        stored = by_output.get(name) or quantize(tensor.to(device), own, name, grid.get(name))
        yield from ((form.tensor_name(name, part), content) for part, content in stored.items())
        done += 1
        report(done, len(forms), "layers quantized")


def _kept_grid(
    recipe: QuantizationRecipe, source: Path, grid: Path | None, model: "PreTrainedModel"
) -> "dict[str, Stored]":
    """Weight name -> earlier parts whose scales are taken over: none for a weight that pruning has cut since."""
    if not recipe.keep_absmax:
        return {}
    if grid is None:
        raise StudyError(
            f"keep_absmax: there is no quantization before {source}; leave it out of this Q's recipe"
        )
    shapes = {name: tensor.shape for name, tensor in checkpoints.stored_tensors(model).items()}
    earlier = list(checkpoints.quantized_weights(grid))
    if any(stored.name not in shapes for stored in earlier):
        raise StudyError(
            f"keep_absmax: layers of {grid} have been dropped since it was quantized; leave it out of this Q's recipe"
        )
    return {
        stored.name: stored.parts
        for stored in earlier
        if stored.shape == tuple(shapes[stored.name])
        and _same_parts(stored.format, recipe.format, stored.shape)
    }


def _same_parts(one: Format, other: Format, shape: Shape) -> bool:
    return type(one) is type(other) and one.parts(shape) == other.parts(shape)


def _write_config(source: Path, target: Path, quantization: dict[str, Any]) -> None:
    import torch

    config = checkpoints.read_config(source)
    config.dtype = torch.bfloat16
    config.quantization_config = quantization
    config.save_pretrained(target)
