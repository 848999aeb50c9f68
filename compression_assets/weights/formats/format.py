"""What a number format is.

A format is a subclass of `Format`, frozen; its fields are its options. It is listed in registry.py, or brought by
another package through the entry point group "compression_assets.formats". Sizes, plans, the check of a written file,
dequantization, scoring and export read the class and nothing else about the format.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
Stored = dict[str, "torch.Tensor"]
"""A stored weight: what follows the weight's name in a file ("" for the codes, ".absmax", …) -> tensor on the CPU."""
Role = Literal["linear", "embedding", "head", "other"]
"""What a tensor is in its model: the weight of an nn.Linear, of the token embedding or of the output layer, or else."""

WIDTHS = {
    **{"U64": 8, "I64": 8, "F64": 8, "F32": 4, "U32": 4, "I32": 4},
    **{"BF16": 2, "F16": 2, "U16": 2, "I16": 2},
    **{"F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1},
}
"""Bytes of a number by safetensors' name of its type, in the order in which a file holds them."""


@dataclass(frozen=True)
class ModelTensor:
    """One tensor of a model that is not stored yet: a tied one once."""

    name: str
    shape: Shape
    role: Role = "other"

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def linear(self) -> bool:
        return self.role == "linear"

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")


@dataclass(frozen=True)
class Part:
    """One tensor of a stored weight. dtype: safetensors' name.

    text: a description in JSON, whose length no shape tells for certain; left out where bytes are compared.
    """

    dtype: str
    shape: Shape
    text: bool = False

    @property
    def bytes(self) -> int:
        return WIDTHS[self.dtype] * prod(self.shape)


class Format(ABC):
    """A way to store the weights of a model. Subclasses are frozen dataclasses and light to import.

    name: in recipes and in the registry. roles: of the tensors that it covers; the others stay in bfloat16.
    full_precision: whether a model in it can be trained and pruned. max_relative_error: ||W - Ŵ|| / ||W|| (Frobenius)
    of any weight, by nearest rounding, above which a written model does not pass. devices: kinds of device on which
    transformers runs a model in this format by itself; empty where it has no loader, and the model is only run
    dequantized. library: what loads it, as the graph shows it. row_multiple: of which the inputs of a linear layer are
    a multiple where kernels take it whole.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    roles: ClassVar[frozenset[Role]] = frozenset({"linear"})
    full_precision: ClassVar[bool] = False
    max_relative_error: ClassVar[float]
    devices: ClassVar[tuple[str, ...]] = ()
    library: ClassVar[str] = "safetensors"
    row_multiple: ClassVar[int] = 1

    @abstractmethod
    def parts(self, shape: Shape) -> dict[str, Part]:
        """The tensors that a weight [out, in] is stored as, by what follows its name."""

    @abstractmethod
    def quantize(self, weight: "torch.Tensor") -> Stored:
        """The parts of a weight fp32 or bf16 [out, in], by nearest rounding, computed on the weight's device."""

    def round_trip(self, weight: "torch.Tensor") -> "torch.Tensor":
        """`dequantize(quantize(weight))`, on the weight's device: where training does it in every step."""
        return self.dequantize(self.quantize(weight)).to(weight.device)

    @abstractmethod
    def dequantize(self, stored: Stored) -> "torch.Tensor":
        """The exact weight of stored parts: fp32 [out, in]."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """The `quantization_config` of config.json that says this format with its options."""

    @classmethod
    @abstractmethod
    def from_config(cls, quantization: Mapping[str, Any]) -> Self | None:
        """The format that a `quantization_config` describes; None if it describes another one."""

    def covers(self, tensor: ModelTensor) -> bool:
        """Whether a tensor of a model is stored in this format."""
        return tensor.role in self.roles

    def tensor_name(self, weight: str, part: str) -> str:
        """Name in a file of one part of a weight."""
        return weight + part

    def stored_bytes(self, shape: Shape) -> int:
        """Bytes of a weight in a file, text left out."""
        return sum(part.bytes for part in self.parts(shape).values() if not part.text)

    def refusal(self, shape: Shape) -> str:
        """Why a weight [out, in] cannot be stored in this format at all; "" if it can."""
        return ""

    def misfit(self, shape: Shape, device: str) -> str:
        """Why the kernels of a kind of device ("cpu", "cuda") cannot multiply by a weight [out, in]; "" if they can."""
        return ""

    def reference(self, stored: Stored) -> "torch.Tensor":
        """`dequantize` by another implementation, where there is one, as a check on it."""
        return self.dequantize(stored)

    def kept_codes(self, weight: "torch.Tensor", stored: Stored) -> tuple[float, int]:
        """(Share of codes that quantizing a dequantized weight gives back, weights left out as they have no scale)."""
        again = self.quantize(weight)
        same = [(again[part] == tensor).double().sum().item() for part, tensor in stored.items()]
        return sum(same) / sum(tensor.numel() for tensor in stored.values()), 0

    def clipping(self, weight: "torch.Tensor", stored: Stored) -> tuple[float, float]:
        """(Share of weights beyond the format's range, ||what is cut off|| / ||weight||); 0 where scales never clip."""
        return 0.0, 0.0
