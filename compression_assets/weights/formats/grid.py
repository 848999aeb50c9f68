"""Formats whose weights lie on a grid: one of a few levels, times a scale that neighbouring weights share."""

from abc import abstractmethod
from typing import TYPE_CHECKING

from compression_assets.weights.formats.format import Format, Stored

if TYPE_CHECKING:
    import torch

FITS = 2
"""Alternations for a master that has moved by one training step. Each takes as long as rounding it does."""


class GridFormat(Format):
    """weight = levels[code] × scale. Q rounds to such a format in any of its ways, with scales that are there already.

    A scale may be 0 or negative, where it is itself stored in few bits.
    """

    @abstractmethod
    def levels(self, device: "torch.device | str" = "cpu") -> "torch.Tensor":
        """What codes 0, 1, … stand for, rising: fp32 [levels]."""

    @abstractmethod
    def codes(self, stored: Stored) -> "torch.Tensor":
        """The code of every weight: uint8 [out, in]."""

    @abstractmethod
    def scales(self, stored: Stored) -> "torch.Tensor":
        """The scale of every weight, as it is stored: fp32 [out, in]."""

    @abstractmethod
    def with_codes(self, stored: Stored, codes: "torch.Tensor") -> Stored:
        """Parts with the scales of `stored` and other codes, uint8 [out, in] on any device."""

    @abstractmethod
    def blocks(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Numbers [out, in] by what shares a scale: [blocks, size], the last one filled up with zeros."""

    @abstractmethod
    def with_scales(self, stored: Stored, scales: "torch.Tensor") -> Stored:
        """Parts with the codes of `stored` and other scales, fp32 [blocks], as near as they can be stored."""

    def fitted(self, weight: "torch.Tensor", grid: Stored) -> Stored:
        """Parts of `grid` with other scales: with them the nearest levels are nearer to a weight [out, in].

        Lloyd's alternation (1982): the nearest levels on the scales that are there, then for each block the scale of
        the least squared error with these levels; FITS times. Codes of the parts are without meaning.
        """
        import torch

        weights, levels = self.blocks(weight.float()), self.levels(weight.device)
        for _ in range(FITS):
            chosen = self.blocks(levels[self.nearest(self.scaled(weight, grid)).int()])
            norms = chosen.square().sum(1)
            kept = self.blocks(self.scales(grid).to(weight.device))[:, 0]
            best = (chosen * weights).sum(1) / norms
            grid = self.with_scales(grid, torch.where(norms > 0, best, kept))
        return grid

    def scaled(self, weight: "torch.Tensor", grid: Stored) -> "torch.Tensor":
        """A weight [out, in] divided by the scales of `grid`: fp32 on its device.

        Beyond the levels where a scale is smaller than the one that the weight itself would get.
        """
        return divided(weight.float(), self.scales(grid).to(weight.device))

    def nearest(self, scaled: "torch.Tensor") -> "torch.Tensor":
        """The codes, uint8, of the levels that are nearest to scaled weights of any shape."""
        import torch

        return torch.bucketize(scaled, self.middles(scaled.device)).to(torch.uint8)

    def middles(self, device: "torch.device | str" = "cpu") -> "torch.Tensor":
        """Where a scaled weight goes from one level to the next: fp32, one less than levels."""
        levels = self.levels(device)
        return (levels[1:] + levels[:-1]) / 2

    def rounded(self, weight: "torch.Tensor", scales: "torch.Tensor") -> "torch.Tensor":
        """A weight fp32 [out, in] with each entry on the nearest level of its scale."""
        return self.levels(weight.device)[self.nearest(divided(weight, scales)).int()] * scales

    def kept_codes(self, weight: "torch.Tensor", stored: Stored) -> tuple[float, int]:
        """On the scales that are stored: rounded weights need not reach the outer level that decides a new one."""
        scaled = self.scales(stored) != 0
        same = (self.nearest(self.scaled(weight, stored)) == self.codes(stored))[scaled]
        return same.double().mean().item() if scaled.any() else 1.0, int((~scaled).sum())

    def clipping(self, weight: "torch.Tensor", stored: Stored) -> tuple[float, float]:
        levels = self.levels()
        return clipped(
            weight, self.scaled(weight, stored), self.scales(stored), levels[0].item(), levels[-1].item()
        )


def divided(weight: "torch.Tensor", scales: "torch.Tensor") -> "torch.Tensor":
    """weight / scale; 0 where the scale is 0, as every code means 0 there."""
    import torch

    return torch.where(scales == 0, torch.zeros_like(weight), weight / scales)


def clipped(
    weight: "torch.Tensor", scaled: "torch.Tensor", scales: "torch.Tensor", low: float, high: float
) -> tuple[float, float]:
    """(Share of scaled weights beyond the outer levels, ||what is cut off|| / ||weight||).

    It is the whole bias of stochastic rounding.
    """
    beyond = scaled - scaled.clamp(low, high)
    cut = (beyond * scales).norm() / weight.float().norm().clamp(min=1e-30)
    return (beyond != 0).sum().item() / weight.numel(), cut.item()
