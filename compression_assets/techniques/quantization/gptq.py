"""Rounding one weight matrix to NF4 such that the layer's output, not each weight, changes least (GPTQ).

Frantar et al. 2022 (arXiv 2210.17323): columns are rounded one after another, and what rounding does to the output is
made up for by those that are left. The grid is bitsandbytes' NF4 with absmax as it is stored, so what comes out is a
checkpoint like any other. GPTQModel, the library for this, rounds to integers with scales of its own and writes formats
of its own, hence this file. Where the inputs come from is in calibrated.py.
"""

from typing import TYPE_CHECKING

from compression_assets.weights.formats import nf4
from compression_assets.weights.formats.format import Stored
from compression_assets.weights.formats.nf4 import nearest

if TYPE_CHECKING:
    import torch

DAMPING = 0.01
"""Of the mean diagonal, added to it (the paper's 1 %): inputs of few tokens leave directions unseen."""
COLUMNS_AT_ONCE = 128
"""Later columns hear of this many at a time (the paper's lazy updates); it changes speed, and rounding of sums."""


def quantize(weight: "torch.Tensor", grid: Stored, second_moment: "torch.Tensor") -> Stored:
    """Store a weight [out, in] as NF4 parts on the CPU, computed on the weight's device.

    grid: parts whose absmax is taken over, the weight's own (`nf4.quantize`) or earlier ones. second_moment: [in, in],
    S = sum of x xᵀ over the layer's inputs x. Minimises tr((W - Ŵ) S (W - Ŵ)ᵀ) greedily, columns of large inputs first.
    """
    import torch

    absmax = _absmax_of_weights(grid, weight)
    order = second_moment.diagonal().argsort(descending=True, stable=True)
    upper = _inverse_factor(second_moment[order][:, order])
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    codes[:, order] = _round_columns(weight.float()[:, order], absmax[:, order], upper)
    return nf4.with_codes(grid, codes, codes.numel())


def output_error(weight: "torch.Tensor", stored: Stored, second_moment: "torch.Tensor") -> float:
    """||(W - Ŵ) X|| / ||W X|| (Frobenius) over the inputs X of the second moment X Xᵀ; 0 for a layer without output."""
    exact = weight.double()
    moment = second_moment.to(exact)
    error = exact - nf4.dequantize(stored).to(exact)
    whole = ((exact @ moment) * exact).sum().item()
    return float((max(((error @ moment) * error).sum().item(), 0.0) / whole) ** 0.5) if whole > 0 else 0.0


def _absmax_of_weights(parts: Stored, weight: "torch.Tensor") -> "torch.Tensor":
    """The stored absmax of every weight's block: [out, in]."""
    absmax = nf4.block_absmax(parts).to(weight.device).repeat_interleave(nf4.BLOCKSIZE)
    return absmax[: weight.numel()].reshape(weight.shape)


def _inverse_factor(moment: "torch.Tensor") -> "torch.Tensor":
    """Upper U [in, in], fp32, with UᵀU the inverse of the damped moment. An input that is always 0 stays alone."""
    import torch

    damped = moment.double()
    diagonal = damped.diagonal()
    diagonal += DAMPING * diagonal.mean()
    diagonal[diagonal == 0] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _round_columns(weight: "torch.Tensor", absmax: "torch.Tensor", upper: "torch.Tensor") -> "torch.Tensor":
    """Codes uint8 [out, in]. weight is used up."""
    import torch

    values = nf4.values(weight.device)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    width = weight.shape[1]
    for start in range(0, width, COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, width)
        errors = torch.empty_like(weight[:, start:end])
        for column in range(start, end):
            scale, wanted = absmax[:, column], weight[:, column]
            scaled = torch.where(scale == 0, torch.zeros_like(wanted), wanted / scale).clamp(-1.0, 1.0)
            codes[:, column] = nearest(scaled)
            rounded = values[codes[:, column].int()] * scale
            error = (wanted - rounded) / upper[column, column]
            weight[:, column:end] -= error[:, None] * upper[column, column:end]
            errors[:, column - start] = error
        weight[:, end:] -= errors @ upper[start:end, end:]
    return codes
