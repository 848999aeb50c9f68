"""Exact dequantization of an NF4 model directory. The number format itself is in nf4.py."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.store.reports import Check, Report, StepReport, no_report
from compression_assets.techniques.quantization.rounding import Rounding, quantize
from compression_assets.techniques.step import StepInputs
from compression_assets.weights import checkpoints, int8, nf4
from compression_assets.weights import quantized as quantized_weights
from compression_assets.weights.files import read_tensors

if TYPE_CHECKING:
    import torch

# Between the definition and bitsandbytes' kernel there is only the order of fp32 operations.
MAX_DIFFERENCE = 1e-5


def dequantize_step(step: StepInputs) -> StepReport:
    """Dequantize `step.parent` into `step.output`; see `dequantize_checkpoint`."""
    return dequantize_checkpoint(step.parent, step.output, step.report)


def dequantize_checkpoint(source: Path, target: Path, report: Report = no_report) -> StepReport:
    """Write an NF4 directory's weights as fp32 masters, exactly on the NF4 grid, and in bf16.

    Always from the stored tensors: a loaded model's own dequantization returns garbage once bitsandbytes has
    repacked it for the CPU at its first forward pass.
    Metadata "layers": each layer's share of codes that quantizing the masters again gives back, and the
    relative difference of the masters from the values of bitsandbytes' kernel.
    Raises StudyError when the source is not quantized, or not NF4 by bitsandbytes.
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
                f"masters differ from bitsandbytes' own values by at most {difference:.1e} (relative), "
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

    Blocks whose stored absmax is not positive (double quantization may do that to a block of almost zeros)
    have no codes to keep; they are counted in "blocks_without_scale" instead.
    """
    masters = dict(read_tensors(checkpoints.masters_or_published(dequantized)))
    stored_layers = {n: s for n, s in quantized_weights.read_nf4(quantized) if isinstance(s, dict)}
    layers = []
    for done, (name, stored) in enumerate(stored_layers.items(), start=1):
        on_grid, same, scaled = (_int8_again if int8.is_int8(stored) else _four_bit_again)(
            masters[name], stored
        )
        layers.append(
            {
                "layer": name.removesuffix(".weight"),
                "codes_equal": same[scaled].float().mean().item() if scaled.any() else 1.0,
                "difference": ((masters[name] - on_grid).norm() / on_grid.norm().clamp(min=1e-30)).item(),
                "blocks_without_scale": int((~scaled).sum()),
            }
        )
        report(done, len(stored_layers), "layers compared")
    return layers


def _four_bit_again(
    master: "torch.Tensor", stored: nf4.Stored
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """The kernel's values [out, in]; which codes quantizing again keeps [blocks, 64]; which blocks have a scale."""
    kind = nf4.kind_of(stored)
    before = nf4.block_codes(stored)
    if kind == "nf4":
        # On the scales that are stored: drawn codes need not reach a block's end, whose maximum is then another.
        again = nf4.block_codes(quantize(master, Rounding("nearest"), grid=stored))
    else:
        again = nf4.block_codes(nf4.quantize(master, kind=kind))
    same = again == before
    if kind == "fp4":
        # It has a zero of each sign, codes 0 and 8, and rounding knows only one.
        same |= (again % 8 == 0) & (before % 8 == 0)
    return nf4.dequantize_by_kernel(stored), same, nf4.block_absmax(stored) > 0


def _int8_again(
    master: "torch.Tensor", stored: nf4.Stored
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """The same with the rows of a matrix as blocks."""
    same = int8.quantize(master)[""] == stored[""]
    return int8.dequantize_by_kernel(stored), same, stored[int8.SCALE] > 0
