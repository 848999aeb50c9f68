"""Norms and rotations with derivatives of our own: against transformers' and against formulas in float64."""

import copy
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from compression_assets.training import fused
from compression_assets.training.fused import fused_layers, rms_norm, rotate
from compression_assets_tests.architectures import ALL, config_of

EPS = 1e-3


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 6), (2, 3, 4, 16)])
def test_norm_is_its_formula(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    x, weight, direction = (
        t.to(dtype) for t in (_random(*shape), 1 + _random(shape[-1]), _random(*shape, seed=1))
    )
    exact = [t.double().requires_grad_() for t in (x, weight)]
    expected = exact[1] * exact[0] / (exact[0].square().mean(-1, keepdim=True) + EPS).sqrt()
    rounded = [t.clone().requires_grad_() for t in (x, weight)]
    found = rms_norm(rounded[0], rounded[1], EPS)
    torch.testing.assert_close(x, rounded[0].detach(), rtol=0, atol=0)
    wanted = [expected, *torch.autograd.grad(expected, exact, direction.double())]
    for one, other in zip([found, *torch.autograd.grad(found, rounded, direction)], wanted, strict=True):
        assert one.dtype == dtype
        assert float((one.double() - other).norm().detach() / other.norm().detach()) < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rotation_is_that_of_a_complex_number(dtype: torch.dtype) -> None:
    query, key = (_random(2, heads, 5, 8, seed=heads).to(dtype).requires_grad_() for heads in (4, 2))
    angles = _random(2, 5, 4, seed=7).to(dtype)
    cos, sin = (torch.cat((f(angles), f(angles)), -1) for f in (torch.cos, torch.sin))
    directions = [_random(*t.shape, seed=3).to(dtype) for t in (query, key)]
    for x, found, direction in zip((query, key), rotate(query, key, cos, sin), directions, strict=True):
        ours = torch.autograd.grad(found, x, direction)[0]
        pairs = torch.complex(*x.detach().double().chunk(2, -1))
        turn = torch.complex(*(half[:, None, :, :4].double() for half in (cos, sin)))
        back = torch.complex(*direction.double().chunk(2, -1)) * turn.conj()
        for one, other in ((found, pairs * turn), (ours, back)):
            expected = torch.cat((other.real, other.imag), -1)
            error = float((one.double() - expected).norm().detach() / expected.norm().detach())
            assert error < (1e-14 if dtype == torch.float64 else 1e-2)


@pytest.mark.parametrize("name", ALL)
def test_a_model_has_the_same_gradients_and_comes_back_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name)).float().train()
    ids = torch.randint(0, 250, (2, 12))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        model(input_ids=ids, labels=ids).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    family = vars(sys.modules[type(model).__module__])
    before, expected = family.get(fused.ROTATE), gradients()
    with fused_layers(model, "cpu", torch.bfloat16):
        found = gradients()
    assert family.get(fused.ROTATE) is before
    assert not any("forward" in vars(module) for module in model.modules())
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-3, atol=2e-6)


def test_what_is_replaced() -> None:
    """What is of Llama's kind, in whatever family, and nothing elsewhere than on a CPU in bfloat16."""

    def replaced(name: str, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> tuple[int, bool]:
        model = AutoModelForCausalLM.from_config(config_of(name))
        family = sys.modules[type(model).__module__]
        with fused_layers(model, device, dtype):
            norms = sum("forward" in vars(module) for module in model.modules())
            return norms, getattr(family, fused.ROTATE, None) is rotate

    assert replaced("Llama") == (5, True)
    assert replaced("Qwen3") == (9, True)
    assert replaced("Gemma2") == (0, True)
    assert replaced("Glm4")[1] is False
    assert replaced("GPT2") == (0, False)
    assert replaced("Llama", "cuda") == (0, False)
    assert replaced("Llama", dtype=torch.float32) == (0, False)


def test_a_frozen_norm_and_a_checkpointed_layer_train() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of("Llama")).train()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, 250, (2, 12))
    for one in (model, other):
        one.model.norm.weight.requires_grad_(False)
        with fused_layers(one, "cpu", torch.bfloat16):
            one(input_ids=ids, labels=ids).loss.backward()
    assert model.model.norm.weight.grad is None
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad)
