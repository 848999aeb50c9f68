"""From weights to NF4 codes other than by bitsandbytes' own rounding: towards a grid of absmax that is fixed already.

After dequantization every weight lies on the NF4 grid, and an update that is smaller than half of the distance to the
next value is undone by rounding to the nearest one. Stochastic rounding keeps it on average. The stored form of codes
and absmax is in nf4.py.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression_assets.weights.formats import nf4
from compression_assets.weights.formats.format import Stored
from compression_assets.weights.formats.nf4 import nearest, scaled_blocks

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rounding:
    """How a weight becomes codes.

    kind: "nearest" or "stochastic". double_quant: absmax of its own is stored in 8 bits. seed: any text, from which
    together with a weight's name its random numbers follow.
    """

    kind: str = "nearest"
    double_quant: bool = True
    seed: str = ""


def quantize(
    weight: "torch.Tensor", rounding: Rounding, name: str = "", grid: Stored | None = None
) -> Stored:
    """Store a weight fp32 or bf16 [out, in] as NF4 parts on the CPU, computed on the weight's device.

    grid: parts whose absmax is taken over, of a matrix of the same shape; None: the weight's own absmax. name: the
    weight's name, which decides its random numbers. Codes are chosen relative to the absmax that is stored, after
    double quantization; only nearest rounding with absmax of its own leaves that to bitsandbytes, whose codes are
    relative to the exact absmax.
    """
    own = nf4.quantize(weight, rounding.double_quant) if grid is None else grid
    if rounding.kind == "nearest" and grid is None:
        return own
    scaled = scaled_blocks(weight, own).clamp(-1.0, 1.0)
    codes = nearest(scaled) if rounding.kind == "nearest" else stochastic(scaled, f"{rounding.seed} {name}")
    return nf4.with_codes(own, codes, weight.numel())


def rounded(weight: "torch.Tensor") -> "torch.Tensor":
    """What a weight [out, in] becomes by nearest rounding with double quantization, fp32, never leaving its device.

    As `nf4.dequantize(nf4.quantize(weight))`, up to a weight that lies on a midpoint, and several times as fast.
    """
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    blocks = nf4.blocks_of(weight)
    absmax = blocks.abs().amax(1)
    codes = nearest(blocks / absmax.clamp(min=1e-38).unsqueeze(1))
    offset = absmax.mean()
    coded = quantize_blockwise(absmax - offset, blocksize=nf4.NESTED_BLOCKSIZE)
    stored = (dequantize_blockwise(*coded) + offset).unsqueeze(1)
    table = nf4.values(weight.device)
    values = table.index_select(0, codes.reshape(-1).int()).reshape(blocks.shape) * stored
    return values.reshape(-1)[: weight.numel()].reshape(weight.shape)


def stochastic(scaled: "torch.Tensor", seed: str) -> "torch.Tensor":
    """Codes uint8 of one of the two NF4 values around each number in [-1, 1], such that the mean is the number.

    The same seed gives the same codes on every device: random numbers are drawn on the CPU.
    """
    import torch

    table = nf4.values(scaled.device)
    lower = (torch.bucketize(scaled, table, right=True) - 1).clamp(0, len(table) - 2)
    share = (scaled - table[lower]) / (table[lower + 1] - table[lower])
    generator = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:15], 16))
    drawn = torch.rand(scaled.shape, generator=generator).to(scaled.device)
    return (lower + (drawn < share)).to(torch.uint8)
