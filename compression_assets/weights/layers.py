"""Linear layers of a model, which quantization and adapters are about, and its decoder layers."""

from typing import TYPE_CHECKING

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

MAMBA = ("mamba", "falcon_mamba")
"""Families whose code multiplies by `dt_proj.weight` itself: neither quantized storage nor adapters reach it."""


def linear_layers(model: "PreTrainedModel") -> list[str]:
    """Names of every nn.Linear that is called as one, except the output embedding."""
    from torch.nn import Linear

    output, kind = model.get_output_embeddings(), model.config.model_type
    return [
        name
        for name, module in model.named_modules()
        if type(module) is Linear
        and module is not output
        and not (kind in MAMBA and name.endswith(".dt_proj"))
    ]


def linear_weights(model: "PreTrainedModel") -> set[str]:
    """Names of the weights of `linear_layers`."""
    return {f"{name}.weight" for name in linear_layers(model)}


def decoder_layers(model: "PreTrainedModel") -> "dict[str, Module]":
    """Name -> decoder layer, in the order in which they run; together they hold every linear layer."""
    from torch.nn import ModuleList

    count = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, ModuleList) and len(module) == count:
            layers = {f"{name}.{index}": layer for index, layer in enumerate(module)}
            if all(linear.startswith(f"{name}.") for linear in linear_layers(model)):
                return layers
    raise StudyError(
        f"models of type {model.config.model_type!r} cannot be taken layer by layer: their linear layers do not all "
        "lie in one list of decoder layers; leave out rounding: gptq of Q, cut: depth of P, and training.gpus"
    )
