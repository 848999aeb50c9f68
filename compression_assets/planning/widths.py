"""Widths of planned models that the kernels of engines do not take whole."""

from collections.abc import Mapping

from compression_assets.weights.formats.gguf_types import LARGE_BLOCK
from compression_assets.weights.formats.grouped_integer import MARLIN_INPUTS
from compression_assets.weights.shapes import Config, tensors


def width_notes(models: Mapping[str, Config], k_quants: Mapping[str, Config]) -> list[str]:
    """A sentence for each engine and the widths that it does not take whole.

    models: model -> its config; those in int4 or int8_grouped are spoken of. k_quants: those that are served in one.
    """
    notes = [
        f"K-quants want widths in multiples of {LARGE_BLOCK}, and {names} {widths}: llama.cpp stores those matrices "
        "in formats with more bits (Q4_K as Q5_0, Q6_K as Q8_0)"
        for widths, names in _odd(k_quants, LARGE_BLOCK).items()
    ]
    packed = {model: config for model, config in models.items() if _packed(config)}
    return notes + [
        f"vLLM's Marlin kernels on a GPU want widths in multiples of {MARLIN_INPUTS}, and {names} {widths}: it takes "
        "another kernel for those matrices, or none"
        for widths, names in _odd(packed, MARLIN_INPUTS).items()
    ]


def _packed(config: Config) -> bool:
    return (config.get("quantization_config") or {}).get("quant_method") == "compressed-tensors"


def _odd(models: Mapping[str, Config], multiple: int) -> dict[str, str]:
    """Widths of the linear layers' inputs that are no multiple -> the models that have them, with their verb."""
    found: dict[str, list[str]] = {}
    for model, config in models.items():
        inputs = {tensor.shape[-1] for tensor in tensors(config) if tensor.linear}
        if odd := sorted(width for width in inputs if width % multiple):
            found.setdefault(" and ".join(f"{width:,}" for width in odd), []).append(model)
    return {
        widths: f"{names[0]} has" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} have"
        for widths, names in found.items()
    }
