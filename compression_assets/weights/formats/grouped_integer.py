"""Integers with one scale for every group of neighbours in a row: int4 and int8_grouped.

Stored as compressed-tensors' "pack-quantized" (symmetric, strategy "group"), which transformers and vLLM load. A group
is what GGUF's Q4_0 and Q8_0 call a block: so many codes of 4 or 8 bits, times a scale.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from compression_assets.errors import StudyError
from compression_assets.weights.formats.format import ModelTensor, Part, Shape, Stored
from compression_assets.weights.formats.grid import GridFormat

if TYPE_CHECKING:
    import torch

CODES, SCALE, SHAPE = "_packed", "_scale", "_shape"
METHOD, LAYOUT = "compressed-tensors", "pack-quantized"
OUTPUT_LAYERS = ("lm_head", "embed_out")
"""Output layers that are linear layers by their class, under the names that transformers has for them."""
GROUP_SIZES = (128, 64, 32)
"""That Q can be told to use; engines have kernels for them."""
ACTIVATION_ORDERS = ("group", "dynamic")
"""Whose groups are not of neighbours."""
EVERY_LAYER = "Linear"
MARLIN_INPUTS = 128
"""What vLLM's Marlin kernels want in_features to be a multiple of (GPTQ_MARLIN_MIN_THREAD_K)."""


@dataclass(frozen=True, kw_only=True)
class GroupedInteger(GridFormat):
    """weight = (code - 2^(bits - 1)) × scale. Codes lie in int32, the first in the lowest bits; scales are bf16.

    group_size: weights of a row that share a scale. ignored: layers in full precision: names, or patterns after "re:".
    targets: the layers that are in this format, likewise; EVERY_LAYER for all linear ones.
    Embeddings stay in bf16: transformers loads no quantized ones.
    """

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    library: ClassVar[str] = METHOD
    row_multiple: ClassVar[int] = MARLIN_INPUTS
    bits: ClassVar[int]
    group_size: int = 64
    ignored: tuple[str, ...] = OUTPUT_LAYERS
    targets: tuple[str, ...] = (EVERY_LAYER,)

    def covers(self, tensor: ModelTensor) -> bool:
        if not super().covers(tensor) or any(_names(one, tensor.module) for one in self.ignored):
            return False
        return any(one == EVERY_LAYER or _names(one, tensor.module) for one in self.targets)

    def refusal(self, shape: Shape) -> str:
        if shape[1] % self.group_size == 0:
            return ""
        fitting = [str(size) for size in GROUP_SIZES if shape[1] % size == 0]
        advice = (
            f"use group_size {' or '.join(fitting)}" if fitting else "no group size fits; use another format"
        )
        return f"{shape[1]} weights a row are no multiple of group_size {self.group_size}; {advice}"

    def parts(self, shape: Shape) -> dict[str, Part]:
        rows, columns = shape
        return {
            CODES: Part("I32", (rows, -(-columns * self.bits // 32))),
            SCALE: Part("BF16", (rows, -(-columns // self.group_size))),
            SHAPE: Part("I64", (2,)),
        }

    def levels(self, device: "torch.device | str" = "cpu") -> "torch.Tensor":
        import torch

        return torch.arange(-self._lowest, self._lowest, dtype=torch.float32, device=device)

    def quantize(self, weight: "torch.Tensor") -> Stored:
        """Raises StudyError for rows that groups do not divide."""
        import torch

        if reason := self.refusal(tuple(weight.shape)):
            raise StudyError(f"{self.title} cannot store a weight of shape {list(weight.shape)}: {reason}")
        grid = {SCALE: self._scales_for(weight).cpu(), SHAPE: torch.tensor(weight.shape)}
        return self.with_codes(grid, self.nearest(self.scaled(weight, grid)))

    def round_trip(self, weight: "torch.Tensor") -> "torch.Tensor":
        return self.rounded(weight.float(), self.scales({SCALE: self._scales_for(weight)}))

    def with_codes(self, stored: Stored, codes: "torch.Tensor") -> Stored:
        import torch

        packed = codes.to("cpu", torch.uint8)
        if self.bits == 4:
            packed = packed[:, ::2] | (packed[:, 1::2] << 4)
        return {**stored, CODES: packed.contiguous().view(torch.int32)}

    def codes(self, stored: Stored) -> "torch.Tensor":
        import torch

        packed = stored[CODES].view(torch.uint8)
        return packed if self.bits == 8 else torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(1)

    def scales(self, stored: Stored) -> "torch.Tensor":
        return stored[SCALE].float().repeat_interleave(self.group_size, dim=1)

    def blocks(self, weight: "torch.Tensor") -> "torch.Tensor":
        return weight.reshape(-1, self.group_size)

    def with_scales(self, stored: Stored, scales: "torch.Tensor") -> Stored:
        return {**stored, SCALE: _as_stored(scales).reshape(stored[SCALE].shape)}

    def dequantize(self, stored: Stored) -> "torch.Tensor":
        return (self.codes(stored).float() - self._lowest) * self.scales(stored)

    def reference(self, stored: Stored) -> "torch.Tensor":
        """The same by compressed-tensors, in fp32."""
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme

        state = {f"weight{part}": tensor for part, tensor in stored.items()}
        state["weight_scale"] = state["weight_scale"].float()
        scheme = QuantizationScheme(**self._group())
        return BaseCompressor.get_value_from_registry(LAYOUT).decompress(state, scheme)["weight"]

    def to_config(self) -> dict[str, Any]:
        return _config([self], self.ignored)

    @classmethod
    def from_config(cls, quantization: Mapping[str, Any]) -> Self | None:
        """Also of a config with several groups of layers, each in a format of its own of this module."""
        if quantization.get("quant_method") != METHOD or quantization.get("format") != LAYOUT:
            return None
        ignored = tuple(quantization.get("ignore") or ())
        groups = list(quantization.get("config_groups", {}).values())
        forms = [
            form
            for group in groups
            for one in (Int4, Int8Grouped)
            if (form := one._of_group(group, ignored, alone=len(groups) == 1)) is not None
        ]
        if len({type(form) for form in forms}) != len(groups):
            return None
        return next((form for form in forms if isinstance(form, cls)), None)

    @classmethod
    def _of_group(cls, group: Mapping[str, Any], ignored: tuple[str, ...], alone: bool) -> Self | None:
        """None for a group in another format. alone: it may be of all linear layers."""
        weights, targets = group.get("weights") or {}, tuple(group["targets"])
        if not weights.get("group_size") or weights.get("actorder") in ACTIVATION_ORDERS:
            return None
        # A word without a dot is the name of a class.
        if not all("." in one for one in targets) and not (alone and targets == (EVERY_LAYER,)):
            return None
        made = cls(group_size=weights["group_size"], ignored=ignored, targets=targets)
        same = all(weights.get(name) == value for name, value in made._group()["weights"].items())
        activations = group.get("input_activations") or group.get("output_activations")
        return made if same and not activations else None

    @property
    def _lowest(self) -> int:
        return 2 ** (self.bits - 1)

    def _scales_for(self, weight: "torch.Tensor") -> "torch.Tensor":
        """By which a group's largest magnitude is the outermost code, -2^(bits - 1): bf16 [out, groups], of any sign.

        ggml's choice for Q4_0. On SmolLM2-135M in groups of 64 (nearest rounding) perplexity came to 59.8, with
        |w| / 7.5, compressed-tensors' own, to 66.8, with |w| / 7 to 77.0, with the least squared error of 14 to 61.7.
        """
        groups = weight.float().reshape(weight.shape[0], -1, self.group_size)
        outermost = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
        return _as_stored(outermost / -self._lowest)

    def _group(self) -> dict[str, Any]:
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": self.group_size,
        }
        return {"targets": list(self.targets), "weights": weights}


@dataclass(frozen=True, kw_only=True)
class Int4(GroupedInteger):
    """Four bits a weight, W4A16 to vLLM."""

    name: ClassVar[str] = "int4"
    title: ClassVar[str] = "int4"
    # Normally distributed weights come out at 0.10 (groups of 64).
    max_relative_error: ClassVar[float] = 0.2
    bits: ClassVar[int] = 4


@dataclass(frozen=True, kw_only=True)
class Int8Grouped(GroupedInteger):
    """Eight bits a weight, W8A16 to vLLM."""

    name: ClassVar[str] = "int8_grouped"
    title: ClassVar[str] = "int8 by groups"
    # Normally distributed weights come out at 0.006.
    max_relative_error: ClassVar[float] = 0.02
    bits: ClassVar[int] = 8


def _as_stored(scales: "torch.Tensor") -> "torch.Tensor":
    """In bf16, and through fp16 as well, so that GGUF, whose scales are fp16, holds even tiny ones exactly."""
    import torch

    return scales.to(torch.bfloat16).to(torch.float16).to(torch.bfloat16)


def mixture_config(forms: Mapping[str, GroupedInteger | None]) -> dict[str, Any]:
    """The `quantization_config` of a model whose linear layers are in several formats.

    forms: name of a layer -> its format, None for full precision. One group of layers for each format.
    """
    members: dict[GroupedInteger, list[str]] = {}
    for layer, form in forms.items():
        if form is not None:
            members.setdefault(form, []).append(layer)
    ignored = (*OUTPUT_LAYERS, *(layer for layer, form in forms.items() if form is None))
    return _config([replace(form, targets=tuple(layers)) for form, layers in members.items()], ignored)


def _config(forms: Iterable[GroupedInteger], ignored: Iterable[str]) -> dict[str, Any]:
    return {
        "quant_method": METHOD,
        "format": LAYOUT,
        "quantization_status": "compressed",
        "ignore": list(ignored),
        "config_groups": {f"group_{index}": form._group() for index, form in enumerate(forms)},
    }


def _names(one: str, module: str) -> bool:
    """Whether an entry of compressed-tensors' `ignore` or `targets` names a module."""
    return bool(re.match(one[3:], module)) if one.startswith("re:") else one == module
