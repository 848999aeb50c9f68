"""Attention over blocks against torch's, in float64, and where it is used."""

import pytest
import torch
import torch.nn.functional as F

from compression_assets.training import attention
from compression_assets.training.attention import attention_forward, causal_attention, short_row_attention
from compression_assets_tests.training_helpers import tiny_model


def _inputs(batch: int, heads: int, groups: int, length: int, width: int) -> list[torch.Tensor]:
    """Query, key and value as a model makes them: views of [B, L, heads, width]."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, length, n, width, generator=generator, dtype=torch.float64)
        .transpose(1, 2)
        .requires_grad_()
        for n in (heads, groups, groups)
    ]


@pytest.mark.parametrize("length", [2, 7, 8, 9, 30])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_output_and_gradients_are_torch_s(
    heads: int, groups: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK", 8)
    tensors = _inputs(2, heads, groups, length, 5)
    expected = F.scaled_dot_product_attention(*tensors, is_causal=True, scale=0.3, enable_gqa=True)
    found = causal_attention(*tensors, scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2))
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(expected, tensors, direction.transpose(1, 2))
    for one, other in zip(torch.autograd.grad(found, tensors, direction), gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_is_as_close_to_the_truth_as_torch_s() -> None:
    exact = _inputs(2, 9, 3, 150, 64)
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    exact = [tensor.detach().double().requires_grad_() for tensor in rounded]

    def run(tensors: list[torch.Tensor], ours: bool) -> list[torch.Tensor]:
        out = (
            causal_attention(*tensors, scale=0.125)
            if ours
            else F.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True).transpose(1, 2)
        )
        generator = torch.Generator().manual_seed(1)
        direction = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
        return [out, *torch.autograd.grad(out, tensors, direction)]

    def errors(ours: bool) -> list[float]:
        pairs = zip(run(rounded, ours), run(exact, False), strict=True)
        return [float((one.double() - other).norm() / other.norm()) for one, other in pairs]

    for ours, torch_s in zip(errors(True), errors(False), strict=True):
        assert ours < 2.5 * torch_s < 0.02


def test_a_mask_dropout_or_cache_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "causal_attention", lambda *_, **__: pytest.fail("not for this one"))
    query, key, value = _inputs(1, 2, 2, 6, 4)
    module = torch.nn.Module()
    mask = torch.ones(6, 6, dtype=torch.bool)[None, None]
    attention_forward(module, query, key, value, mask)
    attention_forward(module, query, key, value, None, dropout=0.5)
    attention_forward(module, query[:, :, :1], key, value, None)


def test_used_only_where_it_is_faster() -> None:
    model = tiny_model()

    def used(device: str = "cpu", longest: int = 100, dtype: torch.dtype = torch.bfloat16) -> bool:
        with short_row_attention(model, device, longest, dtype):
            found = model.config._attn_implementation
        assert model.config._attn_implementation == "sdpa"
        return bool(found == attention.NAME)

    assert used()
    assert not used(longest=attention.LONGEST + 1)
    assert not used(dtype=torch.float32)
    assert not used(device="cuda")


def test_a_model_says_the_same_with_it() -> None:
    model = tiny_model("qwen2")
    ids = torch.randint(0, 60, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with short_row_attention(model, "cpu", 40, torch.bfloat16):
            found = model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_values_of_another_width_than_queries_go_to_torch() -> None:
    """As in DeepSeek-V2, whose heads have values of 128 and queries of 192."""
    query, key, value = _inputs(2, 4, 4, 9, 6)
    narrow = value[..., :4]
    expected = F.scaled_dot_product_attention(query, key, narrow, is_causal=True, scale=0.3)
    found, _ = attention_forward(torch.nn.Module(), query, key, narrow, None, scaling=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2))
