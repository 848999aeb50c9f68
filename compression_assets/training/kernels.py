"""What makes training faster on a device: the one place that switches it on and off again."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from compression_assets.training.attention import short_row_attention
from compression_assets.training.fused import fused_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WORTH_COMPILING = 1_000_000
"""Tokens of a training on CUDA from which its layers are compiled. That takes 13 seconds and makes training 1.3 times
as fast (Qwen2.5-3B on an H100, `benchmarks/results/gpu.md`), where a million tokens are two minutes."""


@contextmanager
def fast_kernels(
    model: "PreTrainedModel", device: str, longest: int, dtype: "torch.dtype", tokens: int = 0
) -> Iterator[bool]:
    """Let a model train faster while the block runs; whether its loss should be compiled as well.

    On a CPU by `short_row_attention` and `fused_layers`, on CUDA by `compiled_layers` where it is worth it. longest: of
    the rows, in tokens. tokens: of the whole training.
    """
    compiling = worth_compiling(model, device, tokens)
    with (
        short_row_attention(model, device, longest, dtype),
        fused_layers(model, device, dtype),
        compiled_layers(model) if compiling else nullcontext(),
    ):
        yield compiling


def worth_compiling(model: "PreTrainedModel", device: str, tokens: int) -> bool:
    """Whether a training on CUDA is long enough, has all weights trained and no experts, and torch.compile works.

    Adapters and experts compute other layers each time, and would be compiled again and again.
    """
    if (
        not device.startswith("cuda")
        or tokens < WORTH_COMPILING
        or os.environ.get("TORCHDYNAMO_DISABLE") == "1"
    ):
        return False
    named = list(model.named_parameters())
    whole = all(parameter.requires_grad and ".experts." not in name for name, parameter in named)
    return whole and compiles(device)


def compiles(device: str) -> bool:
    """Whether torch.compile makes kernels here, which takes a C compiler and Python's headers; said once if not."""
    import torch

    try:
        torch.compile(torch.nn.functional.silu)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 (a chain of compilers may raise anything)
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        logging.getLogger("compression_assets").warning("training goes on without torch.compile: %s", why)
        return False
    return True


@contextmanager
def compiled_layers(model: "PreTrainedModel", backend: str = "inductor") -> Iterator[None]:
    """Decoder layers through torch.compile, for rows of any number and length; what cannot be compiled runs as before.

    torch's own switch is TORCHDYNAMO_DISABLE=1.
    """
    import torch._dynamo
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    with torch._dynamo.config.patch(suppress_errors=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._inductor")
        for layer in layers:
            layer.compile(dynamic=True, backend=backend)
        try:
            yield
        finally:
            for layer in layers:
                layer._compiled_call_impl = None
