"""RMS norms and rotary embeddings whose derivatives are written out, for training on a CPU. No model in here.

transformers computes them by a dozen elementwise operations, which autograd undoes one by one; each is a walk through
memory. Written out they are less than half as many: a norm of SmolLM2-135M takes 0.34 ms instead of 0.83, forward and
back. `benchmarks/kd_speed.py` measures the whole step.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ROTATE = "apply_rotary_pos_emb"
"""In transformers, a function of each family's module, which its attention looks up there."""


@contextmanager
def fused_layers(model: "PreTrainedModel", device: str, dtype: "torch.dtype") -> Iterator[None]:
    """Let a model compute its norms and rotations by this module's functions while the block runs.

    That is on a CPU, in bfloat16. Replaced is what has the same code as Llama's, in whatever family; anything else
    keeps what it has.
    """
    import torch

    if torch.device(device).type != "cpu" or dtype != torch.bfloat16:
        yield
        return
    norms = [module for module in model.modules() if _is_llama_s_norm(module)]
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    before = {file: getattr(file, ROTATE) for file in files if _rotates_as_llama_does(file)}
    for norm in norms:
        norm.forward = partial(_norm_forward, norm)
    for file in before:
        setattr(file, ROTATE, rotate)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward
        for file, function in before.items():
            setattr(file, ROTATE, function)


def rms_norm(x: "torch.Tensor", weight: "torch.Tensor", eps: float) -> "torch.Tensor":
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019), normalised in float32."""
    return _functions()[0].apply(x, weight, eps)


def rotate(
    query: "torch.Tensor",
    key: "torch.Tensor",
    cos: "torch.Tensor",
    sin: "torch.Tensor",
    unsqueeze_dim: int = 1,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Query and key with rotary position embeddings (Su et al. 2021), as transformers' function of Llama."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    rotation = _functions()[1]
    return rotation.apply(query, cos, sin), rotation.apply(key, cos, sin)


def _norm_forward(norm: Any, hidden_states: "torch.Tensor") -> "torch.Tensor":
    return rms_norm(hidden_states, norm.weight, norm.variance_epsilon)


def _is_llama_s_norm(module: Any) -> bool:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return "forward" not in vars(module) and _same(type(module).forward, LlamaRMSNorm.forward)


def _rotates_as_llama_does(file: Any) -> bool:
    from transformers.models.llama import modeling_llama

    names = (ROTATE, "rotate_half")
    return all(_same(getattr(file, name, None), getattr(modeling_llama, name)) for name in names)


def _same(one: Callable[..., Any] | None, other: Callable[..., Any]) -> bool:
    """Whether two functions do the same, names and constants included; their documentation may differ."""
    return hasattr(one, "__code__") and _instructions(one) == _instructions(other)


def _instructions(function: Any) -> tuple[Any, ...]:
    code = function.__code__
    return code.co_code, code.co_names, [one for one in code.co_consts if not isinstance(one, str)]


@cache
def _functions() -> tuple[Any, Any]:
    """The autograd functions of norm and rotation; made when needed, for their base class is torch's."""
    import torch

    class RmsNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
            wide = x.float()
            size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            inverse = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
            normed = (wide * inverse).to(x.dtype)
            ctx.save_for_backward(normed, inverse, weight)
            return weight * normed

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
            normed, inverse, weight = ctx.saved_tensors
            d_weight = (gradient * normed).sum(tuple(range(normed.ndim - 1)))
            d_normed, wide = (gradient * weight).float(), normed.float()
            along = torch.linalg.vecdot(d_normed, wide).unsqueeze(-1) / normed.shape[-1]
            d_x = d_normed.addcmul_(wide, along, value=-1).mul_(inverse)
            return d_x.to(normed.dtype), d_weight.to(weight.dtype), None

    class Rotation(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(cos, sin)
            first, second = x.chunk(2, -1)
            sin_first, sin_second = sin.chunk(2, -1)
            out = x * cos
            out_first, out_second = out.chunk(2, -1)
            out_first.addcmul_(second, sin_first, value=-1)
            out_second.addcmul_(first, sin_second)
            return out

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
            cos, sin = ctx.saved_tensors
            first, second = gradient.chunk(2, -1)
            sin_first, sin_second = sin.chunk(2, -1)
            d_x = gradient * cos
            d_first, d_second = d_x.chunk(2, -1)
            d_first.addcmul_(second, sin_second)
            d_second.addcmul_(first, sin_first, value=-1)
            return d_x, None, None

    return RmsNorm, Rotation
