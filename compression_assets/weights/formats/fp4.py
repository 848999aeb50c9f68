"""FP4 as bitsandbytes stores it: NF4 with sixteen other values."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compression_assets.weights.formats import nf4
from compression_assets.weights.formats.format import Stored

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class FP4(nf4.FourBit):
    """Sign, two bits of exponent and one of mantissa, times the largest magnitude of a block of 64 weights."""

    name: ClassVar[str] = "fp4"
    title: ClassVar[str] = "FP4"
    # Normally distributed weights come out at 0.12.
    max_relative_error: ClassVar[float] = 0.2

    def kept_codes(self, weight: "torch.Tensor", stored: Stored) -> tuple[float, int]:
        before, again = self.codes(stored), self.codes(self.quantize(weight))
        # It has a zero of each sign, codes 0 and 8, and rounding knows only one.
        same = (again == before) | ((again % 8 == 0) & (before % 8 == 0))
        scaled = self.scales(stored) > 0
        return same[scaled].double().mean().item() if scaled.any() else 1.0, int((~scaled).sum())
