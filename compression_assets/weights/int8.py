"""LLM.int8's storage of a weight matrix (Dettmers et al. 2022, arXiv 2208.07339): 8 bits a weight, one scale a row.

As bitsandbytes' Linear8bitLt names its parts: the weight itself, SCB (the largest magnitude of each row) and
weight_format. Outlier columns of activations are separated when the model runs; nothing of that is stored.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Stored = dict[str, "torch.Tensor"]

SCALE = ".SCB"
FORMAT = "_format"
PARTS = {"", SCALE, FORMAT}
LEVELS = 127


def is_int8(stored: Stored) -> bool:
    return SCALE in stored


def quantize(weight: "torch.Tensor") -> Stored:
    """Parts of a weight fp32 or bf16 [out, in]: codes int8 [out, in], scales fp32 [out], format uint8 []."""
    import torch

    weight = weight.float()
    scale = weight.abs().amax(1)
    codes = (weight * (LEVELS / scale.clamp(min=1e-30))[:, None]).round().to(torch.int8)
    # Format 0 is "row", the only one that current versions of bitsandbytes write.
    return {"": codes.cpu(), SCALE: scale.cpu(), FORMAT: torch.tensor(0, dtype=torch.uint8)}


def dequantize(stored: Stored) -> "torch.Tensor":
    """The exact fp32 weight [out, in]: code × scale of its row / 127."""
    return stored[""].float() * (stored[SCALE].float() / LEVELS)[:, None]


def dequantize_by_kernel(stored: Stored) -> "torch.Tensor":
    """The same by bitsandbytes, as a check on `dequantize`."""
    from bitsandbytes.functional import int8_vectorwise_dequant

    return int8_vectorwise_dequant(stored[""], stored[SCALE]).float()


def stored_bytes(rows: int, columns: int) -> int:
    """Bytes of a matrix in a file."""
    return rows * columns + 4 * rows + 1
