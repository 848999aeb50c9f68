"""Output projection and loss in one, in chunks of tokens, without ever holding all logits.

Here live the mathematics of the loss and of its gradient. Where a teacher's targets come from is `teacher_logits`;
which tokens count is decided by whoever calls.

Liger's fused linear losses and cut-cross-entropy are Triton kernels (CUDA only), and torch's chunked
`linear_cross_entropy` has no distillation term, so the chunking is written here in plain tensor operations.
Gradients are returned rather than left to autograd: the weight's can then be summed in float32 where it is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 256 << 20}
"""Upper bound on the chunk of logits held at once, in the model's format. On CUDA each chunk costs a walk through the
float32 gradient of the whole output layer."""

BLOCK_BYTES = 1 << 20
"""On a CPU the softmax of a chunk is computed in blocks of rows (float32 bytes). A block and what is made of it stay
in the cache, and in memory that the process holds: with 4 MiB the kernel hands out and clears pages for every
operation, which took three times as long."""

WEIGHT_ROWS = 8192
"""Rows of the weight gradient made at once."""


@dataclass(frozen=True)
class DenseTargets:
    """The teacher's logits for n tokens, read when needed: `read(start, stop)` is [stop - start, vocabulary]."""

    read: "Callable[[int, int], torch.Tensor]"
    vocabulary: int

    def chunk(self, start: int, stop: int) -> "DenseTargets":
        """Targets of tokens start to stop, in memory."""
        logits = self.read(start, stop)
        return DenseTargets(lambda first, last: logits[first:last], self.vocabulary)


@dataclass(frozen=True)
class SparseTargets:
    """The teacher's distribution at one temperature for n tokens, by a few entries each.

    ids [n, k] int64 and weights [n, k] float; `rest` [n] is the probability of all other tokens together.
    `constant` [n] is the teacher's own part of the divergence, sum of w log w.
    `vocabulary` is the vocabulary on which weights and rest sum to one.
    """

    ids: "torch.Tensor"
    weights: "torch.Tensor"
    constant: "torch.Tensor"
    rest: "torch.Tensor"
    vocabulary: int

    def chunk(self, start: int, stop: int) -> "SparseTargets":
        """Targets of tokens start to stop."""
        return SparseTargets(
            self.ids[start:stop],
            self.weights[start:stop],
            self.constant[start:stop],
            self.rest[start:stop],
            self.vocabulary,
        )


Targets = DenseTargets | SparseTargets


class Teacher(Protocol):
    """Whatever can say a teacher's targets for rows of a dataset, in the order of `hidden[predicts]`."""

    def batch(self, rows: list[int], temperature: float, vocabulary: int, device: str) -> Targets:
        """Targets of the trained tokens of these rows at a temperature, for a student's vocabulary."""
        ...


@dataclass(frozen=True)
class LossWeights:
    """(1 - alpha) * CE + alpha * T^2 * KL(teacher || student at T), each summed over tokens and divided by `tokens`.

    `tokens` is the number of trained tokens of the whole optimiser step, so that the losses of its
    micro-batches add up to the mean over its tokens (Hinton et al. 2015 for the T^2).
    """

    tokens: int
    alpha: float = 0.0
    temperature: float = 1.0

    @property
    def scales(self) -> tuple[float, float]:
        """Of the gradients with respect to logits, summed over tokens: of CE, and of KL at the temperature."""
        return (1 - self.alpha) / self.tokens, self.alpha * self.temperature / self.tokens


@dataclass(frozen=True)
class HeadLoss:
    """What `head_loss` returns: loss, sums of CE and KL over the tokens (nats, 0-d), and d loss / d hidden [n, d]."""

    loss: "torch.Tensor"
    ce_sum: "torch.Tensor"
    kl_sum: "torch.Tensor"
    d_hidden: "torch.Tensor"


def head_loss(
    hidden: "torch.Tensor",
    weight: "torch.Tensor",
    bias: "torch.Tensor | None",
    ids: "torch.Tensor",
    weights: LossWeights,
    teacher: Targets | None = None,
    d_weight: "torch.Tensor | None" = None,
    d_bias: "torch.Tensor | None" = None,
    *,
    chunk_rows: int | None = None,
    compiled: bool = False,
) -> HeadLoss:
    """Loss and gradients of n tokens: hidden states [n, d], output weight [V, d], bias [V] or None, ids [n] to predict.

    Each chunk's logits are turned into their gradient in place and multiplied out at once. The gradients of weight
    and bias are added to `d_weight` and `d_bias` where given (in those tensors' format, so that they may be wider).
    Softmax and sums are in float32 (float64 for float64 input), matrix products in the input's format.

    The KL is over the vocabulary that student and teacher share (the shorter of the two, both renormalised on it);
    CE is over the student's whole vocabulary. With `SparseTargets` the KL is the one between
    distributions over k entries and one "rest" event: by the log-sum inequality never above the true KL. Its
    gradient is exact on the k entries and biased on the others: there it keeps the student's own shape, s_j (1 - r/S)
    with the teacher's rest r and the student's S, where the true one is s_j - p_j; the two differ by p_j - r s_j/S,
    which sums to zero.

    compiled: each chunk's loss by torch.compile, where the teacher is dense or there is none.
    """
    import torch

    if (weights.alpha > 0) != (teacher is not None):
        raise ValueError("a teacher is needed exactly when alpha is above 0")
    n, vocabulary = hidden.shape[0], weight.shape[0]
    rows = chunk_rows or max(1, CHUNK_BYTES[hidden.device.type] // (vocabulary * hidden.element_size()))
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    sums = torch.zeros(2, dtype=wide, device=hidden.device)
    d_hidden = torch.empty_like(hidden)
    buffer = torch.empty(min(rows, n), vocabulary, dtype=hidden.dtype, device=hidden.device)
    with torch.no_grad():
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            logits = torch.mm(hidden[start:stop], weight.T, out=buffer[: stop - start])
            if bias is not None:
                logits += bias
            theirs = None if teacher is None else teacher.chunk(start, stop)
            if compiled and not isinstance(theirs, SparseTargets):
                logits, one = _compiled_gradient(logits, ids[start:stop], weights, theirs)
                sums += one
            else:
                sums += logits_to_gradient(logits, ids[start:stop], weights, theirs)
            torch.mm(logits, weight, out=d_hidden[start:stop])
            if d_weight is not None:
                _add_weight_gradient(d_weight, logits, hidden[start:stop])
            if d_bias is not None:
                d_bias += logits.sum(0, dtype=wide)
    ce, kl = sums
    loss = ((1 - weights.alpha) * ce + weights.alpha * weights.temperature**2 * kl) / weights.tokens
    return HeadLoss(loss, ce, kl, d_hidden)


def logits_to_gradient(
    logits: "torch.Tensor", ids: "torch.Tensor", weights: LossWeights, teacher: Targets | None = None
) -> "torch.Tensor":
    """Overwrite logits [n, V] with the gradient of the loss with respect to them; returns [sum of CE, sum of KL]."""
    import torch

    n, vocabulary = logits.shape
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    block = n if logits.device.type != "cpu" else max(1, BLOCK_BYTES // (4 * vocabulary))
    sums = torch.zeros(2, dtype=wide, device=logits.device)
    for start in range(0, n, block):
        stop = min(start + block, n)
        z = logits[start:stop].to(wide)
        if teacher is None:
            sums[0] += _cross_entropy(z, ids[start:stop, None], 1 / weights.tokens)
        else:
            sums += _distillation(z, ids[start:stop, None], weights, teacher.chunk(start, stop))
        logits[start:stop] = z
    return sums


def _compiled_gradient(
    logits: "torch.Tensor", ids: "torch.Tensor", weights: LossWeights, teacher: DenseTargets | None
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The gradient of `logits_to_gradient` and its sums, by kernels that walk through the logits three times.

    Written as it is above, the loss is some thirty walks through float32 copies.
    """
    import torch

    theirs = None if teacher is None else teacher.read(0, logits.shape[0])
    # Tensors, for a number would be part of the kernel, and they are others in every step.
    scales = torch.tensor(weights.scales).to(logits.device, non_blocking=True)
    return _compiled()(logits, ids, theirs, scales, float(weights.temperature))


@cache
def _compiled() -> Callable[..., "tuple[torch.Tensor, torch.Tensor]"]:
    import torch

    return torch.compile(gradient_of_logits)


def gradient_of_logits(
    logits: "torch.Tensor",
    ids: "torch.Tensor",
    theirs: "torch.Tensor | None",
    scales: "torch.Tensor",
    temperature: float,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Gradient [n, V] of logits [n, V], and [sum of CE, sum of KL], as formulas without anything in place.

    theirs: the teacher's logits [n, S]. scales [2]: of the gradients of CE and of KL.
    """
    import torch
    from torch.nn.functional import pad

    z, vocabulary = logits.float(), logits.shape[1]
    log_q = z.log_softmax(1)
    ce = -log_q.gather(1, ids[:, None]).sum()
    chosen = torch.arange(vocabulary, device=z.device) == ids[:, None]
    gradient = scales[0] * (log_q.exp() - chosen.float())
    if theirs is None:
        return gradient.to(logits.dtype), torch.stack((ce, torch.zeros_like(ce)))
    shared = min(vocabulary, theirs.shape[1])
    log_p = (theirs[:, :shared].float() / temperature).log_softmax(1)
    log_q = (z[:, :shared] / temperature).log_softmax(1)
    p = log_p.exp()
    kl = (p * (log_p - log_q)).sum()
    d_kl = scales[1] * (log_q.exp() - p)
    gradient = gradient + (pad(d_kl, (0, vocabulary - shared)) if shared < vocabulary else d_kl)
    return gradient.to(logits.dtype), torch.stack((ce, kl))


def _add_weight_gradient(total: "torch.Tensor", d_logits: "torch.Tensor", hidden: "torch.Tensor") -> None:
    """total [V, d] += d_logits^T hidden, in slices of the vocabulary that stay in a cache."""
    for start in range(0, total.shape[0], WEIGHT_ROWS):
        total[start : start + WEIGHT_ROWS] += d_logits[:, start : start + WEIGHT_ROWS].T @ hidden


def _cross_entropy(z: "torch.Tensor", ids: "torch.Tensor", scale: float) -> "torch.Tensor":
    """Sum of CE of logits z [n, V] against ids [n, 1]; z becomes `scale` times its gradient."""
    z -= z.amax(1, keepdim=True)
    chosen = z.gather(1, ids)
    total = z.exp_().sum(1, keepdim=True)
    ce = (total.log() - chosen).sum()
    z *= scale / total
    z.scatter_add_(1, ids, chosen.fill_(-scale))
    return ce


def _distillation(
    z: "torch.Tensor", ids: "torch.Tensor", weights: LossWeights, teacher: Targets
) -> "torch.Tensor":
    """[sum of CE, sum of KL] of logits z [n, V]; z becomes the gradient of the weighted loss."""
    import torch

    t, (ce_scale, kl_scale) = weights.temperature, weights.scales
    shared = min(z.shape[1], teacher.vocabulary)
    z -= z.amax(1, keepdim=True)
    chosen = z.gather(1, ids)
    z_shared = z[:, :shared] if shared == z.shape[1] else z[:, :shared] - z[:, :shared].amax(1, keepdim=True)
    if isinstance(teacher, DenseTargets):
        kl, d_kl = _dense_kl(z_shared, teacher, t, kl_scale)
    else:
        kl, d_kl = _sparse_kl(z_shared, teacher, t, kl_scale)
    total = z.exp_().sum(1, keepdim=True)
    ce = (total.log() - chosen).sum()
    z *= ce_scale / total
    z.scatter_add_(1, ids, chosen.fill_(-ce_scale))
    z[:, :shared] += d_kl
    return torch.stack((ce, kl))


def _dense_kl(
    z: "torch.Tensor", teacher: DenseTargets, t: float, scale: float
) -> "tuple[torch.Tensor, torch.Tensor]":
    """KL(teacher || student) at temperature t, and `scale` times student minus teacher probabilities [n, S].

    z has a maximum of 0 in every row. With unnormalised p and q of sums P and Q, KL = sum p (log p - log q) / P
    - log P + log Q: one exponential for each of the two instead of two logarithms and two exponentials.
    """
    ours = z / t
    theirs = teacher.read(0, z.shape[0])[:, : z.shape[1]].to(z.dtype)
    theirs = (theirs - theirs.amax(1, keepdim=True)).div_(t)
    p = theirs.exp()
    theirs -= ours
    p_sum, q = p.sum(1, keepdim=True), ours.exp_()
    q_sum = q.sum(1, keepdim=True)
    kl = theirs.mul_(p).sum(1, keepdim=True) / p_sum - p_sum.log() + q_sum.log()
    return kl.sum(), q.mul_(scale / q_sum).sub_(p.mul_(scale / p_sum))


def _sparse_kl(
    z: "torch.Tensor", teacher: SparseTargets, t: float, scale: float
) -> "tuple[torch.Tensor, torch.Tensor]":
    """As `_dense_kl`, from entries."""
    import torch

    p = teacher.weights.to(z.dtype)
    u = z.div(t).exp_() if t != 1 else z.exp()
    listed = u.gather(1, teacher.ids)
    log_listed = z.gather(1, teacher.ids) / t
    # The student's rest is summed without the listed entries: 1 - sum(listed) would cancel where it is small.
    u.scatter_(1, teacher.ids, 0)
    rest = u.sum(1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    total = rest + listed.sum(1, keepdim=True)
    r = teacher.rest.to(z.dtype)[:, None]
    kl = (
        teacher.constant.to(z.dtype)
        - (p * (log_listed - total.log())).sum(1)
        - (r * (rest / total).log())[:, 0]
    )
    u *= scale * (1 / total - r / rest)
    return kl.sum(), u.scatter_(1, teacher.ids, scale * (listed / total - p))
