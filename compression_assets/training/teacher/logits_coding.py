"""How a teacher's next-token distributions are put into tensors and read back. No files and no model in here.

dense: the logits in bfloat16; serves any temperature.
hidden: the hidden states that the logits are made of; needs nothing from here.
top_k: the k largest probabilities at one temperature and the mass of the rest. Cheap and smooth, but the
    gradient on the unlisted tokens is biased (see `head_loss`).

An id takes 2 bytes, and beyond 65,536 tokens 2 more bits (beyond 262,144 a byte). The largest log-probability and
that of the rest take 2 bytes, as fixed point with a step of 1/1024 nat down to -64. The others take one byte each: the
distance to the one before, as a square, since small distances have to be told apart and large ones only roughly. Each
distance is taken from the decoded neighbour, so errors do not add up: a probability is off by at most 1.6 % times the
root of the largest distance (nats) above it, which no gradient shows (`benchmarks/teacher_logits.py`). The listed
probabilities and the rest are normalised again when read.
"""

from typing import TYPE_CHECKING

from compression_assets.training.head_loss import SparseTargets

if TYPE_CHECKING:
    import torch

STEPS_PER_NAT = 1024
LARGEST_GAP = 16.0
"""Nats between neighbours that a byte can say; e^-16 is no probability to be exact about."""


def encode_top_k(logits: "torch.Tensor", k: int, temperature: float) -> "dict[str, torch.Tensor]":
    """Logits [n, V] to their k largest log-probabilities at `temperature` and log of the mass of the rest."""
    import torch

    log_p = (logits.float() / temperature).log_softmax(1)
    k = min(k, log_p.shape[1])
    values, ids = log_p.topk(k, 1)
    # Summed over the unlisted tokens, not 1 minus the listed: that would cancel where the rest is small.
    rest = log_p.scatter(1, ids, -torch.inf).logsumexp(1)
    packed = {"first": _fixed(values[:, 0]), "gaps": _gap_codes(values), "rest": _fixed(rest)}
    return _pack_ids(ids, log_p.shape[1]) | packed


def stored_bytes(k: int, vocabulary: int) -> int:
    """Bytes a token of `encode_top_k`."""
    k = min(k, vocabulary)
    return _id_bytes(k, vocabulary) + 2 + (k - 1) + 2


def _id_bytes(count: int, vocabulary: int) -> int:
    high = count if vocabulary > 1 << 18 else -(-count // 4) if vocabulary > 1 << 16 else 0
    return 2 * count + high


def decode(tensors: "dict[str, torch.Tensor]", vocabulary: int) -> SparseTargets:
    """Targets from what `encode_top_k` made of n tokens."""
    import torch

    ids = _unpack_ids(tensors)
    first, rest = (tensors[name].to(torch.float32)[:, None] / -STEPS_PER_NAT for name in ("first", "rest"))
    log_p = torch.cat((first, first - _gap(tensors["gaps"]).cumsum(1)), 1)
    log_p, log_rest = torch.cat((log_p, rest), 1).log_softmax(1).split((ids.shape[1], 1), 1)
    weights, rest_weight = log_p.exp(), log_rest[:, 0].exp()
    constant = (weights * log_p).sum(1)
    # A rest without mass: its weight of 0 must not meet a logarithm of 0.
    constant += torch.where(rest_weight > 0, rest_weight * log_rest[:, 0], 0.0)
    return SparseTargets(ids, weights, constant, rest_weight, vocabulary)


def _fixed(log_p: "torch.Tensor") -> "torch.Tensor":
    import torch

    return log_p.mul(-STEPS_PER_NAT).round_().clamp_(0, 65_535).to(torch.int32).to(torch.uint16)


def _gap_codes(log_p: "torch.Tensor") -> "torch.Tensor":
    """One byte for each log-probability after the first [n, k - 1], of descending ones [n, k]."""
    import torch

    codes = torch.empty(log_p.shape[0], log_p.shape[1] - 1, dtype=torch.uint8, device=log_p.device)
    before = _fixed(log_p[:, 0]).to(torch.float32) / -STEPS_PER_NAT
    for place in range(codes.shape[1]):
        share = (before - log_p[:, place + 1]).clamp_(0, LARGEST_GAP) / LARGEST_GAP
        codes[:, place] = share.sqrt_().mul_(255).round_().to(torch.uint8)
        before = before - _gap(codes[:, place])
    return codes


def _gap(codes: "torch.Tensor") -> "torch.Tensor":
    """Nats of a distance, from its byte."""
    import torch

    return codes.to(torch.float32).div_(255).square_().mul_(LARGEST_GAP)


def _pack_ids(ids: "torch.Tensor", vocabulary: int) -> "dict[str, torch.Tensor]":
    import torch

    packed = {"ids_low": (ids & 0xFFFF).to(torch.int32).to(torch.uint16)}
    high = ids >> 16
    if vocabulary > 1 << 18:
        packed["ids_high"] = high.to(torch.uint8)
    elif vocabulary > 1 << 16:
        four = torch.nn.functional.pad(high, (0, -ids.shape[1] % 4)).unflatten(1, (-1, 4))
        packed["ids_bits"] = (four << _shifts(ids)).sum(2).to(torch.uint8)
    return packed


def _unpack_ids(tensors: "dict[str, torch.Tensor]") -> "torch.Tensor":
    import torch

    ids = tensors["ids_low"].to(torch.int64)
    if "ids_high" in tensors:
        ids |= tensors["ids_high"].to(torch.int64) << 16
    if "ids_bits" in tensors:
        bytes_ = tensors["ids_bits"].to(torch.int64)[:, :, None]
        ids |= (bytes_ >> _shifts(ids) & 3).flatten(1)[:, : ids.shape[1]] << 16
    return ids


def _shifts(like: "torch.Tensor") -> "torch.Tensor":
    """Where each of four ids keeps its two high bits in their byte."""
    import torch

    return torch.arange(0, 8, 2, device=like.device)
