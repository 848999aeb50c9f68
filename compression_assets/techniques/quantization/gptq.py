"""Rounding one weight matrix to a grid such that the layer's output, not each weight, changes least (GPTQ).

Frantar et al. 2022 (arXiv 2210.17323): columns are rounded one after another, and what rounding does to the output is
made up for by those that are left. The grid is a format's own, with scales as they are stored, so what comes out is a
checkpoint like any other. GPTQModel, the library for this, rounds to integers with scales of its own and writes formats
of its own, hence this file. Where the inputs come from is in calibrated.py.
"""

from typing import TYPE_CHECKING

from compression_assets.weights.formats.format import Stored
from compression_assets.weights.formats.grid import GridFormat, divided

if TYPE_CHECKING:
    import torch

DAMPING = 0.01
"""Of the mean diagonal, added to it (the paper's 1 %): inputs of few tokens leave directions unseen."""
COLUMNS_AT_ONCE = 128
"""Later columns hear of this many at a time (the paper's lazy updates); it changes speed, and rounding of sums."""


def quantize(weight: "torch.Tensor", form: GridFormat, grid: Stored, second_moment: "torch.Tensor") -> Stored:
    """Store a weight [out, in] as parts on the CPU, computed on the weight's device.

    grid: parts whose scales are taken over, the weight's own (`form.quantize`) or earlier ones. second_moment: S = sum
    of x xᵀ over the layer's inputs x, [in, in].
    Minimises tr((W - Ŵ) S (W - Ŵ)ᵀ) greedily, columns of large inputs first.
    """
    import torch

    scales = form.scales(grid).to(weight.device)
    order = second_moment.diagonal().argsort(descending=True, stable=True)
    upper = _inverse_factor(second_moment[order][:, order])
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    codes[:, order] = _round_columns(weight.float()[:, order], form, scales[:, order], upper)
    return form.with_codes(grid, codes)


def output_error(weight: "torch.Tensor", rounded: "torch.Tensor", second_moment: "torch.Tensor") -> float:
    """||(W - Ŵ) X|| / ||W X|| (Frobenius) over the inputs X of the second moment X Xᵀ; 0 for a layer without output."""
    exact = weight.double()
    moment = second_moment.to(exact)
    error = exact - rounded.to(exact)
    whole = ((exact @ moment) * exact).sum().item()
    return float((max(((error @ moment) * error).sum().item(), 0.0) / whole) ** 0.5) if whole > 0 else 0.0


def _inverse_factor(moment: "torch.Tensor") -> "torch.Tensor":
    """Upper U [in, in], fp32, with UᵀU the inverse of the damped moment. An input that is always 0 stays alone."""
    import torch

    damped = moment.double()
    diagonal = damped.diagonal()
    diagonal += DAMPING * diagonal.mean()
    diagonal[diagonal == 0] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _round_columns(
    weight: "torch.Tensor", form: GridFormat, scales: "torch.Tensor", upper: "torch.Tensor"
) -> "torch.Tensor":
    """Codes uint8 [out, in]. weight is used up."""
    import torch

    levels = form.levels(weight.device)
    middles = form.middles(weight.device)  # made once: form.nearest would for every column
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    width = weight.shape[1]
    for start in range(0, width, COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, width)
        errors = torch.empty_like(weight[:, start:end])
        for column in range(start, end):
            scale, wanted = scales[:, column], weight[:, column]
            codes[:, column] = torch.bucketize(divided(wanted, scale).clamp(levels[0], levels[-1]), middles)
            rounded = levels[codes[:, column].int()] * scale
            error = (wanted - rounded) / upper[column, column]
            weight[:, column:end] -= error[:, None] * upper[column, column:end]
            errors[:, column - start] = error
        weight[:, end:] -= errors @ upper[start:end, end:]
    return codes
