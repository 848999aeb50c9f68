"""NF4 as bitsandbytes stores it: four bits a weight, and the largest magnitude (absmax) of every 64 weights.

Codes and absmax of one weight matrix, and the class that says everything about the format. Parts are named as
bitsandbytes names them: "" for the packed codes, ".absmax", …
Sources: Dettmers et al. 2023 (QLoRA, arXiv 2305.14314); bitsandbytes.functional.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from compression_assets.weights.formats.bitsandbytes import (
    BitsAndBytes,
    bitsandbytes_config,
    has_bits,
    skipped_in,
)
from compression_assets.weights.formats.format import Part, Shape, Stored
from compression_assets.weights.formats.grid import GridFormat, clipped, divided

if TYPE_CHECKING:
    import torch
    from bitsandbytes.functional import QuantState

BLOCKSIZE = 64
NESTED_BLOCKSIZE = 256
CODE_OF_ZERO = 7
DESCRIPTION = ".quant_state.bitsandbytes__"
"""Before the kind ("nf4" or "fp4") in the name of a weight's description, which is JSON."""
OFFSET_DIGITS = 18
"""Characters of the float32 that a description prints: the one thing in a file that no shape tells."""

# bitsandbytes' CPU kernels pack 32 rows together and read whole blocks of a row.
CPU_OUT_MULTIPLE = 32


def nearest_codes(weight: "torch.Tensor", kind: str = "nf4") -> "tuple[torch.Tensor, torch.Tensor]":
    """bitsandbytes' rounding: codes uint8 [n] of the nearest NF4 values, and absmax fp32 [n / 64]."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=BLOCKSIZE, compress_statistics=False, quant_type=kind)
    return unpack_codes(packed, weight.numel()), state.absmax


def quantize(weight: "torch.Tensor", double_quant: bool = True, kind: str = "nf4") -> Stored:
    """Store a weight fp32 or bf16 [out, in] as bitsandbytes would, as NF4 (or FP4) parts on the CPU.

    Computed on the weight's device.
    """
    codes, absmax = nearest_codes(weight, kind)
    return store(codes, absmax, weight.shape, double_quant, kind)


def store(
    codes: "torch.Tensor", absmax: "torch.Tensor", shape: "torch.Size", double_quant: bool, kind: str = "nf4"
) -> Stored:
    """Codes uint8 [n] (0..15) and absmax fp32 [blocks] as the parts of a bitsandbytes checkpoint.

    The descriptor says bf16 whatever the codes were computed from, so that it loads as any NF4 model does.
    """
    return {part: tensor.cpu() for part, tensor in _parts(codes, absmax, shape, double_quant, kind).items()}


def round_trip(weight: "torch.Tensor", double_quant: bool, kind: str) -> "torch.Tensor":
    """`dequantize(quantize(...))` on the weight's device."""
    codes, absmax = nearest_codes(weight, kind)
    return dequantize(_parts(codes, absmax, weight.shape, double_quant, kind))


def _parts(
    codes: "torch.Tensor", absmax: "torch.Tensor", shape: "torch.Size", double_quant: bool, kind: str
) -> Stored:
    """All parts, on the device of codes and absmax."""
    return {"": pack_codes(codes), **_scale_parts(absmax, shape, double_quant, kind)}


def _scale_parts(absmax: "torch.Tensor", shape: "torch.Size", double_quant: bool, kind: str) -> Stored:
    """All parts but the codes, on the device of absmax."""
    import torch
    from bitsandbytes.functional import QuantState, get_4bit_type, quantize_blockwise

    offset = state2 = None
    if double_quant:
        offset = absmax.mean()
        absmax, state2 = quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCKSIZE)
    state = QuantState(
        absmax=absmax,
        shape=shape,
        dtype=torch.bfloat16,
        blocksize=BLOCKSIZE,
        code=get_4bit_type(kind, device=absmax.device),
        quant_type=kind,
        offset=offset,
        state2=state2,
    )
    return {f".{suffix}": tensor for suffix, tensor in state.as_dict(packed=True).items()}


def dequantize(stored: Stored) -> "torch.Tensor":
    """The exact fp32 weight [out, in] of stored parts, by definition: NF4 value of a code × absmax of its block.

    Not by bitsandbytes' kernel: on a CPU with AVX-512 that one takes blocks to begin anew in every row, and is
    silently wrong (relative error 0.28 instead of 0.09) where in_features is a multiple of 16 but not of 64.
    """
    state = _state(stored)
    values = state.code[block_codes(stored).int()] * block_absmax(stored).unsqueeze(1)
    return values.reshape(-1)[: state.shape.numel()].reshape(state.shape)


def dequantize_by_kernel(stored: Stored) -> "torch.Tensor":
    """The same by bitsandbytes' kernel, from one long row so that it is right: the check on `dequantize`."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    state = _state(stored)
    shape, state.dtype, state.shape = state.shape, torch.float32, torch.Size([1, 2 * stored[""].numel()])
    return dequantize_4bit(stored[""], state).reshape(-1)[: shape.numel()].reshape(shape)


def block_codes(stored: Stored) -> "torch.Tensor":
    """Codes uint8 [blocks, 64]; the last block is filled up with zeros."""
    import torch

    n = _state(stored).shape.numel()
    return torch.nn.functional.pad(unpack_codes(stored[""], n), (0, -n % BLOCKSIZE)).reshape(-1, BLOCKSIZE)


def block_absmax(stored: Stored) -> "torch.Tensor":
    """Absmax fp32 [blocks] as stored: after double quantization, which may even make a tiny one negative."""
    state = _state(stored)
    if not state.nested:
        return state.absmax
    scale = state.state2.absmax.repeat_interleave(NESTED_BLOCKSIZE)[: state.absmax.numel()]
    return state.state2.code[state.absmax.int()] * scale + state.offset


def values(device: "torch.device | str" = "cpu") -> "torch.Tensor":
    """The 16 NF4 values, rising from -1 to 1: fp32 [16]."""
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type("nf4", device=device)


def shape_of(stored: Stored) -> "torch.Size":
    """[out, in] of the weight that was stored."""
    return _state(stored).shape


def pack_codes(codes: "torch.Tensor") -> "torch.Tensor":
    """Codes uint8 [n] (0..15), two a byte with the first in the high bits, as uint8 [ceil(n / 2), 1]."""
    import torch

    codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2), value=CODE_OF_ZERO)
    return ((codes[::2] << 4) | codes[1::2]).unsqueeze(1)


def unpack_codes(packed: "torch.Tensor", n: int) -> "torch.Tensor":
    """The first n codes, uint8 [n], of what `pack_codes` made."""
    import torch

    flat = packed.reshape(-1)
    return torch.stack((flat >> 4, flat & 0xF), dim=1).reshape(-1)[:n]


def _state(stored: Stored) -> "QuantState":
    from bitsandbytes.functional import QuantState

    # from_dict takes the descriptor out of the dict that it is given.
    parts = {suffix.removeprefix("."): tensor for suffix, tensor in stored.items() if suffix}
    return QuantState.from_dict(parts, device=stored[""].device)


@dataclass(frozen=True, kw_only=True)
class FourBit(BitsAndBytes):
    """Codes of four bits, whose values times the absmax of a block are the weights.

    double_quant: absmax is itself stored in 8 bits, in blocks of 256 with one fp32 each. compute_dtype: in which its
    kernels multiply.
    """

    row_multiple: ClassVar[int] = BLOCKSIZE
    double_quant: bool = True
    compute_dtype: str = "bfloat16"

    def parts(self, shape: Shape) -> dict[str, Part]:
        """Two codes a byte, absmax, their tables of 16 and 256 fp32, and the description."""
        weights = prod(shape)
        blocks = -(-weights // BLOCKSIZE)
        parts = {
            "": Part("U8", (-(-weights // 2), 1)),
            ".absmax": Part("U8" if self.double_quant else "F32", (blocks,)),
            ".quant_map": Part("F32", (16,)),
            f"{DESCRIPTION}{self.name}": Part("U8", (self._description_bytes(shape),), text=True),
        }
        if self.double_quant:
            parts[".nested_absmax"] = Part("F32", (-(-blocks // NESTED_BLOCKSIZE),))
            parts[".nested_quant_map"] = Part("F32", (256,))
        return parts

    def _description_bytes(self, shape: Shape) -> int:
        description: dict[str, Any] = {
            "quant_type": self.name,
            "blocksize": BLOCKSIZE,
            "dtype": "bfloat16",
            "shape": list(shape),
        }
        if not self.double_quant:
            return len(json.dumps(description))
        nested = {"nested_blocksize": NESTED_BLOCKSIZE, "nested_dtype": "float32", "nested_offset": 0}
        return len(json.dumps(description | nested)) - 1 + OFFSET_DIGITS

    def quantize(self, weight: "torch.Tensor") -> Stored:
        return quantize(weight, self.double_quant, self.name)

    def round_trip(self, weight: "torch.Tensor") -> "torch.Tensor":
        return round_trip(weight, self.double_quant, self.name)

    def dequantize(self, stored: Stored) -> "torch.Tensor":
        return dequantize(stored)

    def reference(self, stored: Stored) -> "torch.Tensor":
        return dequantize_by_kernel(stored)

    def codes(self, stored: Stored) -> "torch.Tensor":
        """The code of every weight: uint8 [out, in]."""
        shape = shape_of(stored)
        return unpack_codes(stored[""], shape.numel()).reshape(shape)

    def scales(self, stored: Stored) -> "torch.Tensor":
        """The absmax of every weight's block, as it is stored: fp32 [out, in]."""
        shape = shape_of(stored)
        return block_absmax(stored).repeat_interleave(BLOCKSIZE)[: shape.numel()].reshape(shape)

    def clipping(self, weight: "torch.Tensor", stored: Stored) -> tuple[float, float]:
        scales = self.scales(stored)
        return clipped(weight, divided(weight.float(), scales), scales, -1.0, 1.0)

    def misfit(self, shape: Shape, device: str) -> str:
        """bitsandbytes' CPU kernels raise on other shapes, or compute nonsense; CUDA takes any."""
        out_features, in_features = shape
        if device != "cpu" or (in_features % BLOCKSIZE == 0 and out_features % CPU_OUT_MULTIPLE == 0):
            return ""
        return (
            f"in_features {in_features} and out_features {out_features} must be multiples of {BLOCKSIZE} and "
            f"{CPU_OUT_MULTIPLE}"
        )

    def to_config(self) -> dict[str, Any]:
        return bitsandbytes_config(
            4,
            self.skipped,
            bnb_4bit_quant_type=self.name,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=self.compute_dtype,
        )

    @classmethod
    def from_config(cls, quantization: Mapping[str, Any]) -> Self | None:
        kind = quantization.get("bnb_4bit_quant_type", "fp4")
        if not has_bits(quantization, 4) or kind != cls.name:
            return None
        return cls(
            skipped=skipped_in(quantization),
            double_quant=bool(quantization.get("bnb_4bit_use_double_quant")),
            compute_dtype=quantization.get("bnb_4bit_compute_dtype", "float32"),
        )


@dataclass(frozen=True, kw_only=True)
class NF4(FourBit, GridFormat):
    """Sixteen values that are quantiles of the normal distribution, times the absmax of a block of 64 weights."""

    name: ClassVar[str] = "nf4"
    title: ClassVar[str] = "NF4"
    # Normally distributed weights come out at 0.09.
    max_relative_error: ClassVar[float] = 0.15

    def levels(self, device: "torch.device | str" = "cpu") -> "torch.Tensor":
        return values(device)

    def with_codes(self, stored: Stored, codes: "torch.Tensor") -> Stored:
        return {**stored, "": pack_codes(codes.reshape(-1)).cpu()}

    def blocks(self, weight: "torch.Tensor") -> "torch.Tensor":
        import torch

        flat = weight.reshape(-1)
        return torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCKSIZE)).reshape(-1, BLOCKSIZE)

    def with_scales(self, stored: Stored, scales: "torch.Tensor") -> Stored:
        return {"": stored[""], **_scale_parts(scales, shape_of(stored), self.double_quant, self.name)}
