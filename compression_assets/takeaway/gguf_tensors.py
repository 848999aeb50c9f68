"""Weights as GGUF's tensor types hold them: rounded by the gguf package, or copied where a model's numbers are theirs.

A block of Q4_0 or Q8_0 is 32 codes of 4 or 8 bits and an fp16 scale (ggml's block_q4_0 and block_q8_0), which is what
int4 and int8_grouped store with larger groups: their scale goes into every block of the group.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError
from compression_assets.weights.formats.format import Format
from compression_assets.weights.formats.grouped_integer import GroupedInteger

if TYPE_CHECKING:
    import gguf
    import numpy as np
    import torch

TYPES = ("bf16", "f16", "q8_0", "q5_0", "q4_0")
"""Of matrices. Embeddings and the output layer never have less than eight bits, vectors are in float32."""
EXACT = ("bf16", "f16")
"""Types in which a 16-bit model keeps its predictions."""
COARSE = ("q5_0", "q4_0")
BLOCK = 32
CODE_BITS = {"q4_0": 4, "q8_0": 8}


def type_of_embeddings(kind: str) -> str:
    return "q8_0" if kind in COARSE else kind


def ggml_type(kind: str) -> "gguf.GGMLQuantizationType":
    import gguf

    return gguf.GGMLQuantizationType[kind.upper()]


def file_type(kind: str) -> "gguf.LlamaFileType":
    import gguf

    return gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]


def same_numbers(form: Format, kind: str) -> bool:
    """Whether a type holds exactly what a format stores."""
    return (
        isinstance(form, GroupedInteger) and form.bits == CODE_BITS.get(kind) and form.group_size % BLOCK == 0
    )


def types_as_stored(forms: Mapping[str, Format], kind: str) -> dict[str, str]:
    """Weight name -> the type that holds exactly what its format stores, of the weights that are written so.

    forms: of the quantized weights. Those of eight bits in a mixture are q8_0 beside q4_0.
    """
    kinds = ("q4_0", "q8_0") if kind == "q4_0" else (kind,)
    return {name: own for name, form in forms.items() for own in kinds if same_numbers(form, own)}


def refuse_second_rounding(directory: Path, form: Format, kind: str, source: str) -> None:
    """StudyError if the weights lie on a grid that is not the type's. source: the full-precision model before it."""
    if form.full_precision or kind not in COARSE or same_numbers(form, kind):
        return
    raise StudyError(
        f"{directory} is in {form.title}: in {kind} its weights would be rounded a second time, to another grid; "
        f"export {source or 'the model it was quantized from'} as gguf:{kind}, or this one as gguf:q8_0"
    )


def rounded(name: str, weight: "torch.Tensor", kind: str) -> "np.ndarray":
    """A weight [out, in] in a type, by the gguf package. Raises StudyError for rows that blocks do not divide."""
    import gguf

    if kind not in EXACT and weight.shape[1] % BLOCK:
        raise StudyError(
            f"{name} has rows of {weight.shape[1]} weights, no multiple of {kind}'s {BLOCK}: use gguf:bf16"
        )
    return gguf.quants.quantize(weight.float().contiguous().numpy(), ggml_type(kind))


def copied(name: str, codes: "torch.Tensor", scales: "torch.Tensor", kind: str) -> "np.ndarray":
    """Codes uint8 [out, in] and scales fp32 [out, in] of a `GroupedInteger` as blocks, bytes [out, bytes of a row].

    Raises StudyError where a block does not mean what was stored: scales that fp16 does not hold.
    """
    import gguf
    import numpy as np

    bits = CODE_BITS[kind]
    blocks = codes.numpy().reshape(len(codes), -1, BLOCK)
    scale = scales[:, ::BLOCK, None].numpy().astype(np.float16).view(np.uint8)
    if bits == 4:
        packed = blocks[..., : BLOCK // 2] | (blocks[..., BLOCK // 2 :] << 4)
    else:
        packed = blocks ^ 0x80
    raw = np.concatenate([scale, packed], axis=-1).reshape(len(codes), -1)
    stored = (codes.float() - 2 ** (bits - 1)) * scales
    if not np.array_equal(gguf.quants.dequantize(raw, ggml_type(kind)), stored.numpy()):
        raise StudyError(f"{name} has scales that fp16, and so {kind}, does not hold: use gguf:bf16")
    return raw
