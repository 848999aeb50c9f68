"""What became of a step's training when the next Q came: two or three model directories compared layer by layer.

After a dequantization every layer starts on the grid of the Q before; a model that never was quantized is compared with
direct quantization of what its last training started from. Where a step in between removes rows of a matrix, blocks
stay what they were if in_features is a multiple of 64; where it removes columns, they shift and the matrix is left out.
The mathematics of one matrix is in survival.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.evaluation.layer_ways import Incomparable, Kept, LayerWays
from compression_assets.evaluation.survival import Survival, measure_survival, measure_update
from compression_assets.weights import checkpoints
from compression_assets.weights.files import read_tensors
from compression_assets.weights.formats import nf4
from compression_assets.weights.formats.format import Stored

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Comparison:
    """Layer -> what survived there; layers that could not be compared -> why."""

    layers: dict[str, Survival] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def compare(origin: Path, quantized_origin: Path | None, since: Sequence[Path], after: Path) -> Comparison:
    """Every linear layer of the NF4 directory `after` against what its training started from.

    origin: full-precision directory before the training. quantized_origin: the NF4 directory that it was dequantized
    from; None: it never was quantized, and the codes before are those that nearest rounding gives it.
    since: the full-precision directories that the steps since origin have left, in order; the last is what `after` was
    quantized from. Layers that some step has cut, dropped or renumbered are found by what that step says of them.
    """
    ways = LayerWays([origin, *since])
    masters = dict(read_tensors(checkpoints.masters_or_published(since[-1])))
    stored = checkpoints.quantized_weights(quantized_origin) if quantized_origin else ()
    starts = {weight.name: weight.parts for weight in stored}
    origins = dict(read_tensors(checkpoints.masters_or_published(origin)))
    found = Comparison()
    for quantized in checkpoints.quantized_weights(after):
        layer = quantized.name.removesuffix(".weight")
        try:
            first, cuts = ways.back(layer)
            begun = origins[f"{first}.weight"].float()
            parts = starts.get(f"{first}.weight") or nf4.quantize(begun)
            for rows, columns in cuts:
                begun, parts = _without_removed(begun, parts, rows, columns)
        except Incomparable as reason:
            found.left_out[layer] = str(reason)
            continue
        update = measure_update(begun, parts, masters[quantized.name], on_grid=quantized_origin is not None)
        found.layers[layer] = measure_survival(update, quantized.parts)
    return found


def rows_of(stored: Stored, rows: "torch.Tensor") -> Stored:
    """Parts of a matrix of some rows, with the same codes and absmax; in_features is a multiple of 64."""
    import torch

    out_features, in_features = nf4.shape_of(stored)
    codes = nf4.block_codes(stored).reshape(out_features, in_features)[rows]
    absmax = nf4.block_absmax(stored).reshape(out_features, -1)[rows]
    shape = torch.Size([len(rows), in_features])
    return nf4.store(codes.reshape(-1), absmax.reshape(-1), shape, double_quant=False)


def _without_removed(
    weight: "torch.Tensor", parts: Stored, rows: Kept, columns: Kept
) -> "tuple[torch.Tensor, Stored]":
    """A weight and its parts with the rows that a step has kept. Raises Incomparable where blocks shift."""
    import torch

    if columns is not None:
        raise Incomparable("pruning removed columns, so that its blocks are others")
    if rows is None:
        return weight, parts
    if weight.shape[1] % nf4.BLOCKSIZE:
        raise Incomparable("its rows are no whole blocks, so that pruning shifted them")
    kept = torch.tensor(rows)
    return weight[kept], rows_of(parts, kept)
