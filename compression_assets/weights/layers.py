"""The layers of a model that quantization and adapters are about."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def linear_layers(model: "PreTrainedModel") -> list[str]:
    """Names of every nn.Linear except the output embedding."""
    from torch.nn import Linear

    output = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if type(module) is Linear and module is not output]


def linear_weights(model: "PreTrainedModel") -> set[str]:
    """Names of the weights of `linear_layers`."""
    return {f"{name}.weight" for name in linear_layers(model)}
