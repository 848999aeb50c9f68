"""Rotary positions between GGUF and transformers: plain, linear, YaRN and Llama 3's.

llama.cpp keeps Llama 3's scaling as a tensor, `rope_freqs.weight`: by what each frequency is divided.
"""

import math
from collections.abc import Sequence
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.sources.gguf_metadata import Metadata

PRECISION = 1e-3
"""Relative difference of a divisor that the float32 of the file and the rounded settings may leave."""

BASE = 10_000.0
"""rope_theta where a file names none."""

_YARN = {
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def rope_parameters(metadata: Metadata, width: int) -> dict[str, Any]:
    """transformers' `rope_parameters` of a file. width: of a head.

    Raises StudyError, naming the key, for a kind of scaling that is not read.
    """
    base = float(metadata.of_model("rope.freq_base", BASE))
    if metadata.of_model("rope.dimension_count", width) != width:
        raise StudyError(
            f"rope.dimension_count is {metadata.of_model('rope.dimension_count')} of heads {width} wide: "
            "rotating a part of a head is not read here"
        )
    kind = str(metadata.of_model("rope.scaling.type", "none"))
    factor = float(metadata.of_model("rope.scaling.factor", metadata.of_model("rope.scale_linear", 1.0)))
    if metadata.factors:
        if kind not in ("none", "llama3"):
            raise StudyError(
                f"rope.scaling.type {kind!r} beside the tensor rope_freqs.weight is not read here"
            )
        return _llama3(metadata.factors, base)
    if kind == "linear" or (kind == "none" and metadata.of_model("rope.scale_linear") is not None):
        return {"rope_theta": base, "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {"rope_theta": base, "rope_type": "yarn", "factor": factor} | _yarn(metadata)
    if kind != "none":
        raise StudyError(f"rotary positions of rope.scaling.type {kind!r} are not read here")
    return {"rope_theta": base, "rope_type": "default"}


def llama3_divisors(rope: dict[str, Any], width: int) -> list[float]:
    """By what Llama 3's scaling divides each of the width / 2 frequencies (transformers' `rope_type: llama3`)."""
    base, factor = rope["rope_theta"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    divisors = []
    for index in range(0, width, 2):
        turns = context / (2 * math.pi * base ** (index / width))
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - share) / factor + share))
    return divisors


def _yarn(metadata: Metadata) -> dict[str, Any]:
    context = metadata.of_model("rope.scaling.original_context_length")
    if context is None:
        raise StudyError(
            "rope.scaling.type 'yarn' without rope.scaling.original_context_length says too little"
        )
    found = {
        ours: float(value)
        for theirs, ours in _YARN.items()
        if (value := metadata.of_model(f"rope.scaling.{theirs}")) is not None
    }
    # llama.cpp multiplies by what YaRN derives from its factor; transformers takes the product.
    if found.pop("attention_factor", 1.0) != 1.0:
        raise StudyError("rope.scaling.attn_factor is not read here")
    return {"original_max_position_embeddings": int(context), **found}


def _llama3(divisors: Sequence[float], base: float) -> dict[str, Any]:
    """The settings behind the divisors: the share kept of each frequency is linear in its turns, up to one scale.

    With low_freq_factor = 1 that scale is chosen. Raises StudyError unless the settings give the same divisors.
    """
    factor = max(divisors)
    if factor == min(divisors) == 1.0:
        return {"rope_theta": base, "rope_type": "default"}
    width = 2 * len(divisors)
    waves = [2 * math.pi * base ** (index / width) for index in range(0, width, 2)]
    between = [
        (1 / wave, (1 / divisor - 1 / factor) / (1 - 1 / factor))
        for wave, divisor in zip(waves, divisors, strict=True)
        if 1 + PRECISION < divisor < factor * (1 - PRECISION)
    ]
    candidates = [(4.0, 8192)]  # Llama 3.1 to 3.3, where too few frequencies lie between
    if len(between) >= 2:
        (first, share), (last, other) = between[0], between[-1]
        slope = (share - other) / (first - last)
        offset = other - slope * last
        if slope > 0 and offset < 0:
            candidates.insert(0, (round(1 - 1 / offset, 4), round(-slope / offset)))
    for high, context in candidates:
        rope = {
            "rope_theta": base,
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": context,
        }
        found = llama3_divisors(rope, width)
        if all(math.isclose(a, b, rel_tol=PRECISION) for a, b in zip(found, divisors, strict=True)):
            return rope
    raise StudyError("the tensor rope_freqs.weight is not of Llama 3's kind of scaling")
