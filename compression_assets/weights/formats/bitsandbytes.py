"""What the formats of bitsandbytes share: how transformers names them in config.json."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compression_assets.weights.formats.format import Format, ModelTensor


@dataclass(frozen=True, kw_only=True)
class BitsAndBytes(Format):
    """skipped: names or patterns of modules that stay in full precision (`llm_int8_skip_modules`)."""

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    library: ClassVar[str] = "bitsandbytes"
    skipped: tuple[str, ...] = ()

    def covers(self, tensor: ModelTensor) -> bool:
        return super().covers(tensor) and not any(
            re.match(pattern, tensor.module) or tensor.module.endswith(pattern) for pattern in self.skipped
        )


def bitsandbytes_config(bits: int, skipped: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """What transformers' BitsAndBytesConfig writes, with `changes`; plain data, since plans need it without torch."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": bits == 4,
        "load_in_8bit": bits == 8,
        "_load_in_4bit": bits == 4,
        "_load_in_8bit": bits == 8,
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": list(skipped) or None,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
    } | changes


def has_bits(quantization: Mapping[str, Any], bits: int) -> bool:
    """Whether a `quantization_config` is of bitsandbytes with so many bits. Old ones do not name their method."""
    method = quantization.get("quant_method", "bitsandbytes")
    return method == "bitsandbytes" and bool(quantization.get(f"load_in_{bits}bit"))


def skipped_in(quantization: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(quantization.get("llm_int8_skip_modules") or ())
