"""From weights to codes other than by a library's own rounding: towards scales that are fixed already.

After dequantization every weight lies on the grid, and an update that is smaller than half of the distance to the
next value is undone by rounding to the nearest one. Stochastic rounding keeps it on average.
"""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compression_assets.weights.formats.format import Format, Stored
from compression_assets.weights.formats.grid import GridFormat
from compression_assets.weights.formats.nf4 import NF4

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rounding:
    """How a weight becomes codes.

    kind: "nearest" or "stochastic". form: what parts are made of; of any but its own nearest rounding a
    `GridFormat`. seed: any text, from which together with a weight's name
    its random numbers follow.
    """

    kind: str = "nearest"
    form: Format = field(default_factory=NF4)
    seed: str = ""


def quantize(
    weight: "torch.Tensor", rounding: Rounding, name: str = "", grid: Stored | None = None
) -> Stored:
    """Store a weight fp32 or bf16 [out, in] as parts on the CPU, computed on the weight's device.

    grid: parts whose scales are taken over, of a matrix of the same shape; None: the weight's own scales. name: the
    weight's name, which decides its random numbers. Codes are chosen relative to the scales that are stored; only
    nearest rounding with scales of its own leaves that to the format, whose codes may be relative to the exact ones.
    """
    form = rounding.form
    if rounding.kind == "nearest" and grid is None:
        return form.quantize(weight)
    assert isinstance(form, GridFormat)
    own = form.quantize(weight) if grid is None else grid
    levels = form.levels(weight.device)
    scaled = form.scaled(weight, own).clamp(levels[0], levels[-1])
    if rounding.kind == "nearest":
        return form.with_codes(own, form.nearest(scaled))
    return form.with_codes(own, stochastic(scaled, levels, f"{rounding.seed} {name}"))


def stochastic(scaled: "torch.Tensor", levels: "torch.Tensor", seed: str) -> "torch.Tensor":
    """Codes uint8 of one of the two levels around each scaled weight, such that the mean is the weight.

    The same seed gives the same codes on every device: random numbers are drawn on the CPU.
    """
    import torch

    lower = (torch.bucketize(scaled, levels, right=True) - 1).clamp(0, len(levels) - 2)
    share = (scaled - levels[lower]) / (levels[lower + 1] - levels[lower])
    generator = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:15], 16))
    drawn = torch.rand(scaled.shape, generator=generator).to(scaled.device)
    return (lower + (drawn < share)).to(torch.uint8)
