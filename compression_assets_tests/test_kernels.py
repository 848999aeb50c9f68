"""What makes training faster is switched on where it helps, changes nothing but speed, and is off afterwards."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from compression_assets.training import kernels
from compression_assets.training.kernels import compiled_layers, worth_compiling
from compression_assets_tests.architectures import config_of

MANY = 10**9


def random_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(family)).float()


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma3Text", "GPTNeoX", "Cohere", "Phi3", "GPT2"])
def test_compiled_layers_compute_the_same_and_are_plain_again(family: str) -> None:
    model = random_model(family).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    called: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        called.append(len(inputs))
        return graph.forward

    def gradient(rows: int, length: int) -> torch.Tensor:
        ids = torch.randint(0, 200, (rows, length), generator=torch.Generator().manual_seed(length))
        model.zero_grad()
        model(input_ids=ids, use_cache=False).logits.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = [gradient(2, 7), gradient(3, 12)]
    with compiled_layers(model, backend=backend):
        for one, (rows, length) in zip(plain, [(2, 7), (3, 12)], strict=True):
            torch.testing.assert_close(gradient(rows, length), one, rtol=1e-4, atol=1e-6)
    assert called, "nothing was compiled"
    before = len(called)
    torch.testing.assert_close(gradient(4, 9), gradient(4, 9), rtol=0, atol=0)
    assert len(called) == before


def test_layers_are_compiled_for_long_trainings_of_whole_models_on_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_model("Llama")
    monkeypatch.setattr(kernels, "compiles", lambda device: True)
    assert worth_compiling(model, "cuda:0", MANY)
    assert not worth_compiling(model, "cpu", MANY)
    assert not worth_compiling(model, "cuda:0", 1000)
    assert not worth_compiling(random_model("Mixtral"), "cuda:0", MANY)
    monkeypatch.setattr(kernels, "compiles", lambda device: False)
    assert not worth_compiling(model, "cuda:0", MANY)
    monkeypatch.setattr(kernels, "compiles", lambda device: True)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert not worth_compiling(model, "cuda:0", MANY)
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    next(model.parameters()).requires_grad_(False)
    assert not worth_compiling(model, "cuda:0", MANY)


def test_a_compiler_that_is_missing_is_said_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("fatal error: Python.h: No such file or directory\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    assert not kernels.compiles("cpu")
    assert "training goes on without torch.compile: fatal error: Python.h" in caplog.text
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert kernels.compiles("cpu")
