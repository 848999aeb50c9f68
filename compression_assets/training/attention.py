"""Causal attention for training short rows on a CPU: matrix products over blocks of queries. No model in here.

torch's attention kernel for CPUs is made for long rows. Its backward pass takes a quarter of a training step on rows
of 512 tokens; one third of that time does here, because everything that counts is a large bfloat16 matrix product:
heads that share their keys are one product, and blocks above the diagonal are left out. The probabilities are kept for
the backward pass, 2 bytes for each query, head and key up to its block's end, which is why long rows stay with torch.
`benchmarks/kd_speed.py` measures both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "causal_blocks"
BLOCK = 128
"""Queries at once."""

LONGEST = 1024
"""Rows beyond it go to torch: probabilities grow with the square of the length, the advantage shrinks."""


@contextmanager
def short_row_attention(
    model: "PreTrainedModel", device: str, longest: int, dtype: "torch.dtype"
) -> Iterator[None]:
    """Let a model use this attention while the block runs, where it is the faster one.

    That is on a CPU, in bfloat16, for rows of at most `LONGEST` tokens, in a model that leaves attention to torch
    (sdpa) and lets it be exchanged. Anything else keeps what it has.
    """
    import torch

    before = model.config._attn_implementation
    fits = torch.device(device).type == "cpu" and dtype == torch.bfloat16 and longest <= LONGEST
    if not fits or before != "sdpa":
        yield
        return
    _register()
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention_forward(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> "tuple[torch.Tensor, None]":
    """Attention as transformers calls it: query [B, H, L, d], key and value [B, G, L, d] -> [B, L, H, d].

    With a mask (a window, padding, a cache), dropout, or values as wide as no query it is torch's.
    """
    plain = attention_mask is None and not dropout and query.shape[-1] == value.shape[-1]
    if not plain or query.shape[2] != key.shape[2] or query.shape[2] < 2:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return causal_attention(query, key, value, scaling or query.shape[-1] ** -0.5), None


def causal_attention(
    query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", scale: float
) -> "torch.Tensor":
    """softmax(scale Q K^T, causal) V of query [B, H, L, d], key and value [B, G, L, d], as [B, L, H, d].

    H is a multiple of G: consecutive heads share keys and values.
    """
    return _function().apply(query, key, value, scale)


@cache
def _function() -> Any:
    """The autograd function; made when needed, for its base class is torch's."""
    import torch

    class CausalAttention(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
        ) -> torch.Tensor:
            batch, heads, length, width = query.shape
            groups = key.shape[1]
            ctx.shape, ctx.scale = (batch, length, groups, heads // groups, width), scale
            key, value = (t.reshape(batch * groups, length, width) for t in (key, value))
            out = query.new_empty(batch, length, heads, width)
            by_group, grouped_out = query.unflatten(1, (groups, -1)), _by_group(out, ctx.shape)
            above = torch.full((BLOCK, BLOCK), -torch.inf, dtype=query.dtype).triu_(1)
            kept = []
            for start, stop in _blocks(length):
                q = _flat(by_group[:, :, :, start:stop])
                scores = _product(q, key[:, :stop].mT, scale)
                corner = scores.view(batch * groups, -1, stop - start, stop)[..., start:]
                corner += above[: stop - start, : stop - start]
                p = torch.softmax(scores, -1)
                made = torch.bmm(p, value[:, :stop])
                grouped_out[:, :, :, start:stop] = made.view(batch, groups, -1, stop - start, width)
                kept += [q, p]
            ctx.save_for_backward(key, value, *kept)
            return out

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
            key, value, *kept = ctx.saved_tensors
            batch, length, groups, _, width = ctx.shape
            d_query = torch.empty_like(gradient, memory_format=torch.contiguous_format)
            by_group, d_by_group = _by_group(gradient, ctx.shape), _by_group(d_query, ctx.shape)
            # Summed over the blocks in float32: each block's part is rounded once, their sum not again.
            wide = torch.promote_types(key.dtype, torch.float32)
            d_key, d_value = (torch.zeros(key.shape, dtype=wide) for _ in range(2))
            for index, (start, stop) in enumerate(_blocks(length)):
                q, p = kept[2 * index : 2 * index + 2]
                g = _flat(by_group[:, :, :, start:stop])
                d_value[:, :stop] += torch.bmm(p.mT, g)
                d_p = torch.bmm(g, value[:, :stop].mT)
                d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype)
                d_q = _product(d_scores, key[:, :stop], ctx.scale)
                d_by_group[:, :, :, start:stop] = d_q.view(batch, groups, -1, stop - start, width)
                d_key[:, :stop] += _product(d_scores.mT, q, ctx.scale)
            shape = (batch, groups, length, width)
            return d_query.transpose(1, 2), *(t.to(key.dtype).view(shape) for t in (d_key, d_value)), None

    return CausalAttention


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _by_group(tensor: "torch.Tensor", shape: tuple[int, ...]) -> "torch.Tensor":
    """[B, L, H, d] seen as [B, G, H / G, L, d]."""
    batch, length, groups, shared, width = shape
    return tensor.view(batch, length, groups, shared, width).permute(0, 2, 3, 1, 4)


def _flat(block: "torch.Tensor") -> "torch.Tensor":
    """[B, G, r, n, d] as [B * G, r * n, d]: the queries that share keys, one below the other."""
    batch, groups, shared, n, width = block.shape
    return block.reshape(batch * groups, shared * n, width)


def _product(left: "torch.Tensor", right: "torch.Tensor", scale: float) -> "torch.Tensor":
    """scale * left @ right, scaled before it is rounded."""
    import torch

    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)
