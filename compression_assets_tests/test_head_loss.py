"""The chunked head and loss against the dense formula and plain autograd, in float64."""

import pytest
import torch
import torch.nn.functional as F

from compression_assets.training import head_loss as losses
from compression_assets.training.head_loss import (
    DenseTargets,
    LossWeights,
    SparseTargets,
    gradient_of_logits,
    head_loss,
    logits_to_gradient,
)
from compression_assets.training.teacher.logits_coding import (
    decode,
    encode_top_k,
    stored_bytes,
)

N, D, V = 11, 6, 23


def _inputs(bias: bool = False, seed: int = 0, vocabulary: int = V) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, D, generator=generator, dtype=torch.float64)
    tensors = [hidden, weight] + (
        [torch.randn(vocabulary, generator=generator, dtype=torch.float64)] if bias else []
    )
    return [tensor.requires_grad_() for tensor in tensors]


def _ids(seed: int = 1) -> torch.Tensor:
    return torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(seed))


def _teacher(vocabulary: int, seed: int = 2) -> torch.Tensor:
    return 2 * torch.randn(N, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _dense(logits: torch.Tensor) -> DenseTargets:
    return DenseTargets(lambda start, stop: logits[start:stop], logits.shape[1])


def _formula(
    logits: torch.Tensor, ids: torch.Tensor, teacher: torch.Tensor | None, weights: LossWeights
) -> torch.Tensor:
    """(1 - a) CE + a T^2 KL as the paper's text has it, written down token by token."""
    ce = -torch.log_softmax(logits, 1)[torch.arange(len(ids)), ids].sum()
    if teacher is None:
        return ce / weights.tokens
    shared, t = min(logits.shape[1], teacher.shape[1]), weights.temperature
    p = torch.softmax(teacher[:, :shared] / t, 1)
    q = torch.softmax(logits[:, :shared] / t, 1)
    kl = (p * (p / q).log()).sum()
    return ((1 - weights.alpha) * ce + weights.alpha * t * t * kl) / weights.tokens


def _compare(bias: bool, teacher: torch.Tensor | None, weights: LossWeights, chunk_rows: int | None) -> None:
    tensors, ids = _inputs(bias), _ids()
    logits = F.linear(*tensors)
    expected = _formula(logits, ids, teacher, weights)
    gradients = torch.autograd.grad(expected, tensors)
    d_weight, d_bias = torch.ones(V, D, dtype=torch.float64), torch.ones(V, dtype=torch.float64)
    result = head_loss(
        tensors[0].detach(),
        tensors[1].detach(),
        tensors[2].detach() if bias else None,
        ids,
        weights,
        None if teacher is None else _dense(teacher),
        d_weight,
        d_bias if bias else None,
        chunk_rows=chunk_rows,
    )
    torch.testing.assert_close(result.loss, expected.detach())
    torch.testing.assert_close(result.d_hidden, gradients[0])
    torch.testing.assert_close(d_weight - 1, gradients[1])
    if bias:
        torch.testing.assert_close(d_bias - 1, gradients[2])


@pytest.mark.parametrize("chunk_rows", [None, 1, 4, N])
@pytest.mark.parametrize("bias", [False, True])
def test_cross_entropy(bias: bool, chunk_rows: int | None) -> None:
    _compare(bias, None, LossWeights(tokens=17), chunk_rows)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("vocabulary", [V, V + 5, V - 5])
def test_distillation_with_dense_teacher(vocabulary: int, alpha: float, temperature: float) -> None:
    _compare(True, _teacher(vocabulary), LossWeights(17, alpha, temperature), chunk_rows=4)


@pytest.mark.parametrize("vocabulary", [None, V, V + 5, V - 5])
def test_the_loss_that_is_compiled_is_the_same(
    vocabulary: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_compiled", lambda: gradient_of_logits)
    (hidden, weight), ids = (t.detach().float() for t in _inputs()), _ids()
    teacher = None if vocabulary is None else _dense(_teacher(vocabulary).float())
    weights = LossWeights(7) if teacher is None else LossWeights(7, 0.3, 2.0)
    found = []
    for compiled in (False, True):
        d_weight = torch.zeros_like(weight)
        done = head_loss(
            *(hidden, weight, None, ids, weights, teacher, d_weight), chunk_rows=4, compiled=compiled
        )
        found.append([done.loss, done.ce_sum, done.kl_sum, done.d_hidden, d_weight])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_alpha_zero_is_cross_entropy() -> None:
    hidden, weight = (tensor.detach() for tensor in _inputs())
    with pytest.raises(ValueError, match="exactly when alpha"):
        head_loss(hidden, weight, None, _ids(), LossWeights(N), _dense(_teacher(V)))


def _sparse(p: torch.Tensor, k: int, vocabulary: int) -> SparseTargets:
    values, ids = p.topk(k, 1)
    rest = (1 - values.sum(1)).clamp_min(0)
    constant = (values * values.log()).sum(1) + torch.special.xlogy(rest, rest)
    return SparseTargets(ids, values, constant, rest, vocabulary)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("shared", [V, V - 5])
def test_top_k_is_the_divergence_of_k_entries_and_a_rest(shared: int, temperature: float) -> None:
    ids, weights = _ids(), LossWeights(17, 0.3, temperature)
    p = torch.softmax(_teacher(shared) / temperature, 1)
    targets = _sparse(p, 5, shared)
    logits = F.linear(*_inputs()).detach().requires_grad_()
    q = torch.softmax(logits[:, :shared] / temperature, 1)
    listed = torch.zeros_like(p, dtype=torch.bool).scatter_(1, targets.ids, True)
    q_rest, p_rest = q.masked_fill(listed, 0).sum(1), p.masked_fill(listed, 0).sum(1)
    kl = (p * (p / q).log())[listed].sum() + (p_rest * (p_rest / q_rest).log()).sum()
    expected = (0.7 * F.cross_entropy(logits, ids, reduction="sum") + 0.3 * temperature**2 * kl) / 17
    (gradient,) = torch.autograd.grad(expected, logits)
    made = logits.detach().clone()
    sums = logits_to_gradient(made, ids, weights, targets)
    torch.testing.assert_close(made, gradient)
    torch.testing.assert_close(sums[1], kl.detach())
    assert kl < (p * (p / q).log()).sum()


def test_all_entries_listed_is_the_dense_divergence() -> None:
    ids, weights, teacher = _ids(), LossWeights(N, 0.5, 2.0), _teacher(V)
    logits = F.linear(*_inputs()).detach()
    dense, sparse = logits.clone(), logits.clone()
    expected = logits_to_gradient(dense, ids, weights, _dense(teacher))
    p = torch.softmax(teacher / 2, 1)
    found = logits_to_gradient(sparse, ids, weights, _sparse(p, V, V))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sparse, dense)


def test_encoded_top_k_keeps_probabilities() -> None:
    teacher = 4 * _teacher(V)
    targets = decode(encode_top_k(teacher, 6, 2.0), V)
    p = torch.softmax(teacher.float() / 2, 1)
    torch.testing.assert_close(targets.weights, p.gather(1, targets.ids), rtol=0.03, atol=1e-7)
    torch.testing.assert_close(targets.weights.sum(1) + targets.rest, torch.ones(N))
    assert torch.equal(targets.ids, teacher.topk(6, 1).indices)


def test_errors_of_coded_probabilities_do_not_add_up() -> None:
    """Each is within 1.6 % times the root of the largest distance above it, however many there are."""
    spread = torch.rand(200, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p = -spread.mul(6).square().sort(1)[0]
    log_p = (log_p - 40 * torch.linspace(0, 1, 60) ** 6).log_softmax(1)
    targets = decode(encode_top_k(log_p, 50, 1.0), 60)
    found = targets.weights.double().log()
    expected = log_p.gather(1, targets.ids)
    gaps = torch.cat((torch.zeros(200, 1), expected[:, :-1] - expected[:, 1:]), 1)
    assert ((found - expected).abs() <= 0.016 * gaps.cummax(1)[0].sqrt() + 3e-3).all()


def test_a_certain_teacher_is_coded_as_one() -> None:
    logits = torch.tensor([[0.0, -200.0, -300.0, -400.0]])
    targets = decode(encode_top_k(logits, 2, 1.0), 4)
    torch.testing.assert_close(targets.weights, torch.tensor([[1.0, 0.0]]), rtol=0, atol=2e-7)
    assert targets.constant.abs().max() < 1e-5


@pytest.mark.parametrize("vocabulary", [65_536, 151_936, 262_144, 262_145])
def test_large_vocabularies_keep_their_ids(vocabulary: int) -> None:
    wanted = [vocabulary - 1, 65_530, 0, vocabulary // 2, min(vocabulary - 2, 131_070)]
    logits = torch.zeros(3, vocabulary)
    for place, token in enumerate(wanted):
        logits[:, token] = 30.0 - place
    for k in range(1, 6):
        assert decode(encode_top_k(logits, k, 1.0), vocabulary).ids.tolist() == [wanted[:k]] * 3


@pytest.mark.parametrize("vocabulary", [300, 65_536, 151_936, 262_145])
@pytest.mark.parametrize("k", [36, 7, 1])
def test_bytes_a_token(k: int, vocabulary: int) -> None:
    tensors = encode_top_k(torch.randn(2, vocabulary), k, 1.0)
    found = sum(tensor.element_size() * tensor[0].numel() for tensor in tensors.values())
    assert found == stored_bytes(k, vocabulary)
    assert stored_bytes(36, 151_936) == 120


def test_bfloat16_agrees_with_float32() -> None:
    hidden, weight = (tensor.detach().float() for tensor in _inputs())
    exact = head_loss(hidden, weight, None, _ids(), LossWeights(N))
    rounded = head_loss(hidden.bfloat16(), weight.bfloat16(), None, _ids(), LossWeights(N))
    assert rounded.d_hidden.dtype == torch.bfloat16
    assert rounded.loss.dtype == torch.float32
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=2e-2, atol=0)
    torch.testing.assert_close(rounded.d_hidden.float(), exact.d_hidden, rtol=0.1, atol=0.02)
