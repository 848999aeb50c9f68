"""Full precision: bfloat16, as models are published, and float32, as their masters are kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from compression_assets.weights.formats.format import Format, ModelTensor, Part, Shape, Stored

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BF16(Format):
    """Every tensor as it is, in bfloat16."""

    name: ClassVar[str] = "bf16"
    title: ClassVar[str] = "bfloat16"
    full_precision: ClassVar[bool] = True
    # Half a step of 8 significant bits.
    max_relative_error: ClassVar[float] = 2.0**-8
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    library: ClassVar[str] = "huggingface"
    dtype: ClassVar[str] = "BF16"

    def covers(self, tensor: ModelTensor) -> bool:
        return True

    def parts(self, shape: Shape) -> dict[str, Part]:
        return {"": Part(self.dtype, shape)}

    def quantize(self, weight: "torch.Tensor") -> Stored:
        return {"": weight.bfloat16().cpu()}

    def dequantize(self, stored: Stored) -> "torch.Tensor":
        return stored[""].float()

    def to_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, quantization: Mapping[str, Any]) -> Self | None:
        return None if quantization else cls()


@dataclass(frozen=True)
class FP32(BF16):
    """float32 masters. They lie beside a published model, so that no config.json names them."""

    name: ClassVar[str] = "fp32"
    title: ClassVar[str] = "float32"
    max_relative_error: ClassVar[float] = 0.0
    dtype: ClassVar[str] = "F32"

    def quantize(self, weight: "torch.Tensor") -> Stored:
        return {"": weight.float().cpu()}

    @classmethod
    def from_config(cls, quantization: Mapping[str, Any]) -> Self | None:
        return None
