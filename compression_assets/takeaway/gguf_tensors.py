"""Weights as GGUF's tensor types hold them: rounded by the gguf package or by ggml, or copied where numbers are theirs.

What int4 and int8_grouped store is Q4_0 and Q8_0 with larger groups: their scale goes into every block of the group.
"""

from typing import TYPE_CHECKING

from compression_assets.errors import StudyError
from compression_assets.takeaway import ggml
from compression_assets.weights.formats.gguf_types import BLOCK, CODE_BITS, EXACT, block_of, ggml_type

if TYPE_CHECKING:
    import gguf
    import numpy as np
    import torch

BY_GGML = ("q4_k", "q5_k", "q6_k", "iq4_nl")
"""Types that the gguf package reads and does not write."""


def file_type(kind: str) -> "gguf.LlamaFileType":
    import gguf

    return gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]


def rounded(
    name: str, weight: "torch.Tensor", kind: str, importance: "torch.Tensor | None" = None
) -> "np.ndarray":
    """A weight [out, in] in a type, bytes [out, bytes of a row]. importance: of its columns, fp32 [in], for ggml.

    Raises StudyError for rows that blocks do not divide, and where a type needs ggml and there is none.
    """
    import gguf

    if kind not in EXACT and weight.shape[1] % block_of(kind):
        raise StudyError(
            f"{name} has rows of {weight.shape[1]} weights, no multiple of {kind}'s {block_of(kind)}: use gguf:bf16"
        )
    values = weight.float().contiguous().numpy()
    if kind in BY_GGML or (importance is not None and kind not in EXACT):
        return ggml.quantize(values, ggml_type(kind), None if importance is None else importance.numpy())
    return gguf.quants.quantize(values, ggml_type(kind))


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
