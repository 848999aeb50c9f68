"""Exact dequantization of a model directory. What stored codes mean is said by their number format."""

from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.store.reports import Check, Report, StepReport, no_report
from compression_assets.techniques.step import StepInputs
from compression_assets.weights import checkpoints
from compression_assets.weights.files import read_tensors

# Between the definition and a library's kernel there is only the order of fp32 operations.
MAX_DIFFERENCE = 1e-5


def dequantize_step(step: StepInputs) -> StepReport:
    """Dequantize `step.parent` into `step.output`; see `dequantize_checkpoint`."""
    return dequantize_checkpoint(step.parent, step.output, step.report)


def dequantize_checkpoint(source: Path, target: Path, report: Report = no_report) -> StepReport:
    """Write a quantized directory's weights as fp32 masters, exactly what the codes mean, and in bf16.

    Always from the stored tensors: a loaded model's own dequantization returns garbage once bitsandbytes has
    repacked it for the CPU at its first forward pass.
    Metadata "layers": each layer's share of codes that quantizing the masters again gives back, and the
    relative difference of the masters from the values of the format's own library.
    Raises StudyError when the source is not quantized, or in no registered format.
    """
    if not checkpoints.is_quantized(source):
        raise StudyError(f"{source} is not quantized; D follows a Q only")
    config = checkpoints.read_config(source)
    model = checkpoints.empty_model(config)
    tensors = dict(checkpoints.fitting(source, checkpoints.dense_tensors(source), model))
    checkpoints.write_full_precision(tensors, config, target, tokenizer_from=source, masters=True)
    del tensors

    layers = compare_with_grid(source, target, report)
    shares = [layer["codes_equal"] for layer in layers]
    difference = max(layer["difference"] for layer in layers)
    return StepReport(
        checks=(
            checkpoints.check_finite(target),
            checkpoints.check_size(target),
            Check(
                "dequantization_error",
                difference <= MAX_DIFFERENCE,
                f"masters differ from the library's own values by at most {difference:.1e} (relative), "
                f"limit {MAX_DIFFERENCE}",
            ),
            Check(
                "nf4_stable",
                min(shares) == 1.0,
                f"quantizing again keeps every code in {shares.count(1.0)} of {len(shares)} layers",
            ),
        ),
        metadata={"layers": layers, "tensor_bytes": checkpoints.tensor_bytes(target)},
    )


def compare_with_grid(quantized: Path, dequantized: Path, report: Report = no_report) -> list[dict[str, Any]]:
    """Per layer: equal codes after quantizing the written masters again, and their distance from the grid.

    Weights without a scale have no codes to keep (double quantization may make the absmax of a block of almost zeros
    0 or negative); they are counted in "weights_without_scale" instead.
    """
    masters = dict(read_tensors(checkpoints.masters_or_published(dequantized)))
    stored_layers = list(checkpoints.quantized_weights(quantized))
    layers = []
    for done, stored in enumerate(stored_layers, start=1):
        master, reference = masters[stored.name], stored.format.reference(stored.parts)
        codes_equal, without_scale = stored.format.kept_codes(master, stored.parts)
        layers.append(
            {
                "layer": stored.name.removesuffix(".weight"),
                "codes_equal": codes_equal,
                "difference": ((master - reference).norm() / reference.norm().clamp(min=1e-30)).item(),
                "weights_without_scale": without_scale,
            }
        )
        report(done, len(stored_layers), "layers compared")
    return layers
