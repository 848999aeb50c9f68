"""What became of a step's training when the next Q came: two or three model directories compared layer by layer.

After a dequantization every layer starts on the grid of the Q before; a model that never was quantized is compared with
direct quantization of what its last training started from. Pruning in between removes neurons: rows of the layers that
make them, whose blocks stay what they were where in_features is a multiple of 64, and columns of the layer that reads
them, whose blocks shift and are left out. The mathematics of one matrix is in survival.py, running
it as an asset is not in here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.evaluation.survival import Survival, measure_survival, measure_update
from compression_assets.techniques.pruning.blocks import FUSED, MAKING, READING, rows_making
from compression_assets.techniques.pruning.technique import KEPT_NEURONS
from compression_assets.weights import checkpoints, nf4
from compression_assets.weights import quantized as quantized_weights
from compression_assets.weights.files import read_tensors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Comparison:
    """Layer -> what survived there; layers that could not be compared -> why."""

    layers: dict[str, Survival] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def compare(
    origin: Path, quantized_origin: Path | None, trained: Path, after: Path, pruned: Sequence[Path] = ()
) -> Comparison:
    """Every linear layer of the NF4 directory `after` against what its training started from.

    origin: full-precision directory before the training. quantized_origin: the NF4 directory that it was dequantized
    from; None: it never was quantized, and the codes before are those that nearest rounding gives it.
    trained: full-precision directory that `after` was quantized from. pruned: directories that pruning steps between
    origin and trained have left, in order.
    """
    kept = [json.loads((directory / KEPT_NEURONS).read_text()) for directory in pruned]
    masters = dict(read_tensors(checkpoints.masters_or_published(trained)))
    starts = dict(quantized_weights.read_nf4(quantized_origin)) if quantized_origin else {}
    origins = dict(read_tensors(checkpoints.masters_or_published(origin)))
    found = Comparison()
    for name, stored in quantized_weights.read_nf4(after):
        if not isinstance(stored, dict):
            continue
        layer = name.removesuffix(".weight")
        begun, grid = origins[name].float(), starts.get(name)
        parts = grid if isinstance(grid, dict) else nf4.quantize(begun)
        for removal in kept:
            reason, begun, parts = _without_pruned(layer, begun, parts, removal)
            if reason:
                found.left_out[layer] = reason
                break
        else:
            update = measure_update(begun, parts, masters[name], on_grid=quantized_origin is not None)
            found.layers[layer] = measure_survival(update, stored)
    return found


def rows_of(stored: nf4.Stored, rows: "torch.Tensor") -> nf4.Stored:
    """Parts of a matrix of some rows, with the same codes and absmax; in_features is a multiple of 64."""
    import torch

    out_features, in_features = nf4.shape_of(stored)
    codes = nf4.block_codes(stored).reshape(out_features, in_features)[rows]
    absmax = nf4.block_absmax(stored).reshape(out_features, -1)[rows]
    shape = torch.Size([len(rows), in_features])
    return nf4.store(codes.reshape(-1), absmax.reshape(-1), shape, double_quant=False)


def _without_pruned(
    layer: str, weight: "torch.Tensor", parts: nf4.Stored, kept: dict[str, list[int]]
) -> "tuple[str, torch.Tensor, nf4.Stored]":
    """(Why the layer cannot be compared, or "", its weight and parts without the rows that pruning removed)."""
    import torch

    block, _, projection = layer.rpartition(".")
    if block not in kept or projection not in MAKING | READING:
        return "", weight, parts
    if projection in READING:
        return "pruning removed columns, so that its blocks are others", weight, parts
    if weight.shape[1] % nf4.BLOCKSIZE:
        return "its rows are no whole blocks, so that pruning shifted them", weight, parts
    rows = rows_making(
        projection, torch.tensor(kept[block]), weight.shape[0] // (2 if projection == FUSED else 1)
    )
    return "", weight[rows], rows_of(parts, rows)
