"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): training W + 2·B·A with W frozen, merged into W at the end.

On torch's parametrizations, so that a model stays the model that it was; the library peft would wrap its layers, and be
imported by every `from_pretrained` of a machine that has it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compression_assets.weights.layers import linear_layers

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from transformers import PreTrainedModel

SCALE = 2.0
"""alpha / rank, as is usual; the learning rate is what is tuned."""


@contextmanager
def low_rank(model: "PreTrainedModel", rank: int, seed: int) -> Iterator[None]:
    """Inside, only adapters of the linear layers are trainable; at the end they are merged in float32.

    The output layer has none.

    A: [rank, in], uniform as torch initialises linear layers; B: [out, rank], zero. What was frozen comes out bit for
    bit as it went in, whatever dtype it was computed with.
    """
    import torch
    from torch.nn.utils import parametrize

    modules = {f"{name}.weight": model.get_submodule(name) for name in linear_layers(model)}
    exact = {name: p.detach().clone() for name, p in model.named_parameters() if name not in modules}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in modules.values():
        parametrize.register_parametrization(module, "weight", _adapter(module, rank, generator))
    yield
    for name, module in modules.items():
        (adapter,) = module.parametrizations["weight"]
        exact[name] = (adapter.exact + adapter.update()).detach()
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    for name, parameter in model.named_parameters():
        parameter.data = exact[name].to(parameter.device)
        parameter.requires_grad_(True)


def _adapter(linear: Any, rank: int, generator: "torch.Generator") -> "Module":
    import torch

    out_features, in_features = linear.weight.shape
    reach = in_features**-0.5

    class Adapter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The parameter may be cast to bfloat16, where the sum would lose what is below half a step of W.
            self.register_buffer("exact", linear.weight.detach().float().clone())
            start = torch.empty(rank, in_features).uniform_(-reach, reach, generator=generator)
            self.a = torch.nn.Parameter(start.to(linear.weight.device))
            self.b = torch.nn.Parameter(torch.zeros(out_features, rank, device=self.a.device))

        def update(self) -> torch.Tensor:
            return SCALE * (self.b.float() @ self.a.float())

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return (self.exact + self.update()).to(weight.dtype)

    return Adapter()
