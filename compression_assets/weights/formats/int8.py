"""LLM.int8's storage of a weight matrix (Dettmers et al. 2022, arXiv 2208.07339): 8 bits a weight, one scale a row.

As bitsandbytes' Linear8bitLt names its parts: the weight itself, SCB (the largest magnitude of each row) and
weight_format. Outlier columns of activations are separated when the model runs; nothing of that is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from compression_assets.weights.formats.bitsandbytes import (
    BitsAndBytes,
    bitsandbytes_config,
    has_bits,
    skipped_in,
)
from compression_assets.weights.formats.format import Part, Shape, Stored

if TYPE_CHECKING:
    import torch

SCALE = ".SCB"
FORMAT = "_format"
LEVELS = 127


@dataclass(frozen=True, kw_only=True)
class Int8(BitsAndBytes):
    """Codes int8 [out, in], scales fp32 [out], and the format's number, uint8 []. Kernels take any shape."""

    name: ClassVar[str] = "int8"
    title: ClassVar[str] = "LLM.int8"
    # Normally distributed weights come out at 0.01.
    max_relative_error: ClassVar[float] = 0.05

    def parts(self, shape: Shape) -> dict[str, Part]:
        return {"": Part("I8", shape), SCALE: Part("F32", shape[:1]), FORMAT: Part("U8", ())}

    def tensor_name(self, weight: str, part: str) -> str:
        """bitsandbytes hangs the scales on the layer, not on its weight."""
        return weight.removesuffix(".weight") + part if part == SCALE else weight + part

    def quantize(self, weight: "torch.Tensor") -> Stored:
        import torch

        # Format 0 is "row", the only one that current versions of bitsandbytes write.
        parts = self._parts_of(weight) | {FORMAT: torch.tensor(0, dtype=torch.uint8)}
        return {part: tensor.cpu() for part, tensor in parts.items()}

    def _parts_of(self, weight: "torch.Tensor") -> Stored:
        """Codes and scales, on the weight's device."""
        import torch

        weight = weight.float()
        scale = weight.abs().amax(1)
        codes = (weight * (LEVELS / scale.clamp(min=1e-30))[:, None]).round().to(torch.int8)
        return {"": codes, SCALE: scale}

    def round_trip(self, weight: "torch.Tensor") -> "torch.Tensor":
        return self.dequantize(self._parts_of(weight))

    def dequantize(self, stored: Stored) -> "torch.Tensor":
        """The exact fp32 weight [out, in]: code × scale of its row / 127."""
        return stored[""].float() * (stored[SCALE].float() / LEVELS)[:, None]

    def reference(self, stored: Stored) -> "torch.Tensor":
        """The same by bitsandbytes."""
        from bitsandbytes.functional import int8_vectorwise_dequant

        return int8_vectorwise_dequant(stored[""], stored[SCALE]).float()

    def kept_codes(self, weight: "torch.Tensor", stored: Stored) -> tuple[float, int]:
        scaled = stored[SCALE] > 0
        same = (self.quantize(weight)[""] == stored[""])[scaled]
        return same.double().mean().item() if scaled.any() else 1.0, int((~scaled).sum()) * weight.shape[1]

    def to_config(self) -> dict[str, Any]:
        return bitsandbytes_config(8, self.skipped)

    @classmethod
    def from_config(cls, quantization: Mapping[str, Any]) -> Self | None:
        return cls(skipped=skipped_in(quantization)) if has_bits(quantization, 8) else None
