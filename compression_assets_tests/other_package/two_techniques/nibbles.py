"""A packed number format: whole numbers from -7 to 7, two a byte, times a scale a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from compression_assets.weights.formats.format import Format, Part, Shape, Stored


@dataclass(frozen=True)
class Nibbles(Format):
    """Only for even in_features."""

    name: ClassVar[str] = "nibbles"
    title: ClassVar[str] = "nibbles"
    max_relative_error: ClassVar[float] = 0.3

    def parts(self, shape: Shape) -> dict[str, Part]:
        rows, columns = shape
        return {".pairs": Part("U8", (rows, columns // 2)), ".scale": Part("F32", (rows,))}

    def quantize(self, weight: Any) -> Stored:
        import torch

        scale = weight.float().abs().amax(1) / 7
        codes = (weight.float() / scale.clamp(min=1e-30)[:, None]).round().int() + 8
        return {".pairs": (codes[:, ::2] * 16 + codes[:, 1::2]).to(torch.uint8).cpu(), ".scale": scale.cpu()}

    def dequantize(self, stored: Stored) -> Any:
        import torch

        pairs = stored[".pairs"].int()
        codes = torch.stack((pairs // 16, pairs % 16), 2).reshape(len(pairs), -1) - 8
        return codes * stored[".scale"][:, None]

    def to_config(self) -> dict[str, Any]:
        return {"quant_method": "nibbles"}

    @classmethod
    def from_config(cls, quantization: Mapping[str, Any]) -> Self | None:
        return cls() if quantization.get("quant_method") == "nibbles" else None
