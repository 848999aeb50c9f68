"""What float32 masters are stored as, in the number formats that a quantized model has already."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from compression_assets.techniques.qad.recipe import Scales
from compression_assets.weights.checkpoints import published
from compression_assets.weights.formats.format import Stored
from compression_assets.weights.formats.grid import GridFormat
from compression_assets.weights.stored import StoredWeight

if TYPE_CHECKING:
    import torch


class StoredForm:
    """From a parameter's name and master to what a file holds of it, and to the weight that this stands for.

    It is the `AsStored` of a training. Weights are rounded to the nearest level: on the scales that they came with, on
    these fitted to the master, or on the format's own for it. Other parameters are stored in bfloat16.
    """

    def __init__(self, weights: Mapping[str, StoredWeight], scales: Scales, device: str) -> None:
        """weights: the quantized ones of the model as it came, by name. device: where masters are."""
        self._weights = weights
        self._fitted = scales == "fitted"
        self._grids = {
            name: {part: tensor.to(device) for part, tensor in weight.parts.items()}
            for name, weight in self._weights.items()
            if scales != "new" and isinstance(weight.format, GridFormat)
        }

    def __call__(self, name: str, master: "torch.Tensor") -> "torch.Tensor":
        """The weight that a stored master stands for: fp32 of its shape, on its device."""
        if name not in self._weights:
            return published(master).float()
        form = self._weights[name].format
        if name not in self._grids:
            return form.round_trip(master)
        assert isinstance(form, GridFormat)
        return form.rounded(master, form.scales(self._grid(name, form, master)))

    def tensors(self, name: str, master: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """What a file holds of a parameter: name -> tensor, on the CPU where it is quantized."""
        if name not in self._weights:
            return {name: published(master)}
        form = self._weights[name].format
        return {form.tensor_name(name, part): tensor for part, tensor in self._parts(name, master).items()}

    def _parts(self, name: str, master: "torch.Tensor") -> Stored:
        form = self._weights[name].format
        if name not in self._grids:
            return form.quantize(master)
        assert isinstance(form, GridFormat)
        grid = self._grid(name, form, master)
        parts = {part: tensor.cpu() for part, tensor in grid.items()}
        return form.with_codes(parts, form.nearest(form.scaled(master, grid)))

    def _grid(self, name: str, form: GridFormat, master: "torch.Tensor") -> Stored:
        return form.fitted(master, self._grids[name]) if self._fitted else self._grids[name]


def within_bins(weight: "torch.Tensor", stored: StoredWeight) -> "torch.Tensor":
    """A weight [out, in] moved as little as makes rounding to the nearest level give the codes that are stored: fp32.

    A hair inside each bin, so that the division by the scale cannot leave it again; 0 where the scale is 0. In a format
    without a grid the weight itself, whose codes it rounds to the nearest.
    """
    import torch

    form = stored.format
    if not isinstance(form, GridFormat):
        return weight.float()
    codes, outer = form.codes(stored.parts).long(), torch.full((1,), math.inf)
    edges = torch.cat([-outer, form.middles(), outer])
    hair = 1e-3 * form.levels().diff().min()
    inside = form.scaled(weight, stored.parts).clamp(edges[codes] + hair, edges[codes + 1] - hair)
    return inside * form.scales(stored.parts)
