"""Quantized weights in the files of a model directory: bitsandbytes' formats (NF4, FP4, int8), a weight as its parts.

The formats' numbers are in techniques/nf4.py and techniques/int8.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError
from compression_assets.weights import int8, nf4
from compression_assets.weights.files import read_tensors, tensor_headers

if TYPE_CHECKING:
    import torch


def dequantized(stored: nf4.Stored) -> "torch.Tensor":
    """The exact fp32 weight [out, in] of a quantized one's parts, whatever its format."""
    return int8.dequantize(stored) if int8.is_int8(stored) else nf4.dequantize(stored)


def is_int8(directory: Path) -> bool:
    """Whether a directory's config.json names LLM.int8."""
    quantization = json.loads((directory / "config.json").read_text()).get("quantization_config") or {}
    return bool(quantization.get("load_in_8bit"))


def stored_format(directory: Path) -> str:
    """What a directory's config.json says its weights are packed as: "nf4", "fp4", "int8", else ""."""
    quantization = json.loads((directory / "config.json").read_text()).get("quantization_config") or {}
    if quantization.get("load_in_8bit"):
        return "int8"
    return str(quantization.get("bnb_4bit_quant_type") or quantization.get("quant_method") or "")


def part_name(weight: str, suffix: str) -> str:
    """Name in a file of one part of a weight: bitsandbytes hangs int8's scales on the layer, others on the weight."""
    return weight.removesuffix(".weight") + suffix if suffix == int8.SCALE else weight + suffix


def _weight_and_part(name: str) -> tuple[str, str]:
    if name.endswith(int8.SCALE):
        return name.removesuffix(int8.SCALE) + ".weight", int8.SCALE
    weight, _, suffix = name.partition(".weight")
    return f"{weight}.weight", suffix


def read_nf4(directory: Path) -> "Iterator[tuple[str, torch.Tensor | nf4.Stored]]":
    """Tensors of a directory that bitsandbytes' formats (NF4, FP4, int8) are in: plain ones, or all parts of a weight.

    Raises StudyError when it is in none of them, or a part of a layer is missing.
    """
    suffixes: dict[str, set[str]] = {}
    headers = tensor_headers(directory)
    for name in headers:
        weight, suffix = _weight_and_part(name)
        suffixes.setdefault(weight, set()).add(suffix)
    suffixes = {weight: parts for weight, parts in suffixes.items() if _is_quantized(parts)}
    if not suffixes:
        raise StudyError(f"{directory} is not a bitsandbytes NF4 checkpoint; only those are dequantized here")
    for weight, parts in suffixes.items():
        nested = headers.get(f"{weight}.absmax", {}).get("dtype") == "U8"
        four_bit = nf4.PARTS | (nf4.NESTED_PARTS if nested else set())
        if missing := (int8.PARTS if int8.SCALE in parts else four_bit) - parts:
            lacking = ", ".join(sorted(missing))
            raise StudyError(f"{weight} in {directory} lacks {lacking}; build this model again")

    gathered: dict[str, nf4.Stored] = {}
    for name, tensor in read_tensors(directory):
        weight, suffix = _weight_and_part(name)
        if weight not in suffixes:
            yield name, tensor
            continue
        stored = gathered.setdefault(weight, {})
        stored[suffix] = tensor
        if stored.keys() == suffixes[weight]:
            yield weight, gathered.pop(weight)


def _is_quantized(parts: set[str]) -> bool:
    return int8.SCALE in parts or any(part.startswith(nf4.DESCRIPTION) for part in parts)
