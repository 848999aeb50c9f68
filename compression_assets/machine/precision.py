"""The one place that decides in which number format a device computes. Nothing else belongs here."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def compute_dtype(device: "str | torch.device") -> "torch.dtype":
    """bfloat16 where the device multiplies it natively, float32 elsewhere.

    bfloat16 rather than float16: it has float32's range, so no loss scaling is needed. A processor without
    bfloat16 instructions emulates it at a fraction of its float32 speed, hence the check of the instruction set.
    """
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        return torch.bfloat16 if native else torch.float32
    return torch.float32
