"""Quantizing a model one decoder layer after another, each on the inputs that the quantized ones before it produce.

The order and the inputs of GPTQ (Frantar et al. 2022, arXiv 2210.17323). How one matrix is rounded is in gptq.py.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.store.reports import Report, no_report
from compression_assets.techniques.quantization import gptq
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.formats.format import Format, Stored
from compression_assets.weights.formats.grid import GridFormat
from compression_assets.weights.layers import decoder_layers, linear_layers

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from transformers import PreTrainedModel

Quantize = Callable[[str, "torch.Tensor", "torch.Tensor"], Stored]
"""(Weight name, weight [out, in], second moment [in, in] of its inputs) -> parts."""


@dataclass
class ByOutput:
    """Weight name -> parts; layer -> its relative output error, beside that of nearest rounding."""

    parts: dict[str, Stored] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)


def quantize_by_output(
    directory: Path,
    dataset: TokenDataset | None,
    forms: Mapping[str, Format],
    kept: Mapping[str, Stored],
    device: str = "cpu",
    report: Report = no_report,
) -> ByOutput:
    """GPTQ codes of every linear weight of a full-precision model directory, computed in fp32 on `device`.

    dataset: the calibration set. forms: weight name -> its format, of the weights to quantize. kept: weight name ->
    parts whose scales are taken over. Errors are those of a layer's
    output on the inputs that it gets here, behind quantized layers. Raises StudyError as `quantize_by_layers`.
    """
    found = ByOutput()
    if dataset is None:
        raise StudyError("rounding: gptq needs a calibration set; add data.splits.calibration to the study")

    def quantize(name: str, weight: "torch.Tensor", moment: "torch.Tensor") -> Stored:
        form = forms[name]
        assert isinstance(form, GridFormat)
        nearest = form.quantize(weight)
        stored = gptq.quantize(weight, form, kept.get(name, nearest), moment)
        found.errors[name.removesuffix(".weight")] = {
            "output_error": gptq.output_error(weight, form.dequantize(stored), moment),
            "output_error_of_nearest": gptq.output_error(weight, form.dequantize(nearest), moment),
        }
        return stored

    model = checkpoints.load_full_precision(directory).to(device)
    found.parts.update(quantize_by_layers(model, dataset, forms, quantize, report))
    return found


def quantize_by_layers(
    model: "PreTrainedModel",
    dataset: TokenDataset,
    forms: Mapping[str, Format],
    quantize: Quantize,
    report: Report = no_report,
) -> Iterator[tuple[str, Stored]]:
    """Every linear weight of `forms`, by name, quantized on the conversations of `dataset`, all of their tokens.

    forms: weight name -> what `quantize` makes parts of. The model's weights become what was stored. Memory: hidden
    states of the whole set, twice, and the second moments of one layer. Raises StudyError where linear layers lie
    outside of the decoder layers, or where there is no data.
    """
    import torch

    layers, names = decoder_layers(model), linear_layers(model)
    if not len(dataset):
        raise StudyError("the calibration set is empty; ask for more calibration conversations")
    model.eval()
    with torch.no_grad():
        calls = _Calls(model, layers, dataset)
    for index, (prefix, layer) in enumerate(layers.items()):
        linear = {
            name: model.get_submodule(name)
            for name in names
            if name.startswith(f"{prefix}.") and f"{name}.weight" in forms
        }
        made = {}
        with torch.no_grad():
            moments = _second_moments(linear, partial(calls.outputs, index, layer))
            for name, module in linear.items():
                stored = quantize(f"{name}.weight", module.weight, moments.pop(name))
                module.weight.copy_(forms[f"{name}.weight"].dequantize(stored))
                made[f"{name}.weight"] = stored
            calls.hidden = calls.outputs(index, layer)
        yield from made.items()
        report(index + 1, len(layers), "layers quantized")


class _Calls:
    """What the decoder layers are called with: hidden states of the layer in work, everything else as the model does.

    hidden: one [1, L, hidden] a conversation.
    """

    def __init__(self, model: "PreTrainedModel", layers: "dict[str, Module]", dataset: TokenDataset) -> None:
        import torch

        self.hidden: list[torch.Tensor] = []
        self._others: list[list[dict[str, Any]]] = [[] for _ in layers]

        def keep(index: int) -> Any:
            def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                kwargs = dict(kwargs)
                hidden = args[0] if args else kwargs.pop("hidden_states")
                if len(args) > 1:
                    raise StudyError("this model calls its layers in a way that rounding: gptq does not know")
                if index == 0:
                    self.hidden.append(hidden)
                self._others[index].append(kwargs)

            return hook

        hooks = [
            layer.register_forward_pre_hook(keep(index), with_kwargs=True)
            for index, layer in enumerate(layers.values())
        ]
        try:
            for row in dataset:
                ids = torch.tensor([row.input_ids], device=model.device)
                model.base_model(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def outputs(self, index: int, layer: "Module") -> "list[torch.Tensor]":
        """What the layer makes of the hidden states, conversation by conversation."""
        made = [
            layer(hidden, **others) for hidden, others in zip(self.hidden, self._others[index], strict=True)
        ]
        return [output[0] if isinstance(output, tuple) else output for output in made]


def _second_moments(
    linear: "dict[str, Any]", run: "Callable[[], list[torch.Tensor]]"
) -> "dict[str, torch.Tensor]":
    """Name -> sum of x xᵀ, fp32 [in, in], over the inputs that linear layers see while `run` runs."""
    import torch

    moments = {
        name: torch.zeros(module.in_features, module.in_features, device=module.weight.device)
        for name, module in linear.items()
    }

    def listen(name: str) -> Any:
        def add(_module: Any, inputs: tuple[Any, ...]) -> None:
            seen = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            moments[name].addmm_(seen.T, seen)

        return add

    hooks = [module.register_forward_pre_hook(listen(name)) for name, module in linear.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return moments
