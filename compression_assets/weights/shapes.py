"""The tensors of a model and the bytes of its saved file, from the numbers of its config alone.

Llama-like architectures are counted without torch; another one is built on torch's meta device, which takes seconds
but no memory. Nothing about training in here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from compression_assets.errors import StudyError

Config = Mapping[str, Any]
"""The keys of a config.json, as far as they decide shapes."""

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
BLOCKSIZE, NESTED_BLOCKSIZE = 64, 256
OFFSET_DIGITS = 18
"""Characters of a printed float32 in the descriptor of a 4-bit layer: the one part of a file that no shape tells."""
_WIDTHS = {"F32": 4, "BF16": 2, "U8": 1, "I8": 1}
# safetensors puts wider types first, and within a type goes by name.
_TYPE_ORDER = ("F32", "BF16", "I8", "U8")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint. linear: the weight of a layer that quantization covers."""

    name: str
    shape: tuple[int, ...]
    linear: bool = False

    @property
    def size(self) -> int:
        return prod(self.shape)


def tensors(config: Config) -> list[Tensor]:
    """Every stored tensor (tied ones once). Raises StudyError for an architecture that transformers does not know."""
    return list(_tensors(json.dumps(dict(config), sort_keys=True)))


@lru_cache(maxsize=64)
def _tensors(config: str) -> tuple[Tensor, ...]:
    """Kept, since a plan asks for the same ones again and again, and the meta device takes seconds."""
    found: dict[str, Any] = json.loads(config)
    return tuple(_llama_like(found) if found["model_type"] in LLAMA_LIKE else _on_meta(found))


def parameters(config: Config) -> int:
    """Number of parameters, tied ones once."""
    return sum(tensor.size for tensor in tensors(config))


def linear_parameters(config: Config) -> int:
    """Weights of the linear layers that quantization covers: all but embeddings and the output layer."""
    return sum(tensor.size for tensor in tensors(config) if tensor.linear)


def file_bytes(config: Config, storage: str = "bf16", double_quant: bool = True) -> int:
    """Bytes of the safetensors file, its header included.

    Exact for bf16, fp32 and int8; for nf4 and fp4 within a few bytes a layer, whose descriptor holds a printed float.
    """
    parts = [part for tensor in tensors(config) for part in _stored(tensor, storage, double_quant)]
    return 8 + _header_bytes(parts) + sum(_WIDTHS[kind] * prod(shape) for _, kind, shape in parts)


Part = tuple[str, str, tuple[int, ...]]


def _stored(tensor: Tensor, storage: str, double_quant: bool) -> list[Part]:
    """Name, type and shape of what one tensor is in a file."""
    if storage == "fp32":
        return [(tensor.name, "F32", tensor.shape)]
    if storage == "bf16" or not tensor.linear:
        return [(tensor.name, "BF16", tensor.shape)]
    if storage == "int8":
        module = tensor.name.removesuffix("weight")
        return [
            (tensor.name, "I8", tensor.shape),
            (f"{module}SCB", "F32", tensor.shape[:1]),
            (f"{module}weight_format", "U8", ()),
        ]
    blocks = -(-tensor.size // BLOCKSIZE)
    parts: list[Part] = [
        (tensor.name, "U8", (-(-tensor.size // 2), 1)),
        (f"{tensor.name}.quant_map", "F32", (16,)),
        (f"{tensor.name}.absmax", "U8" if double_quant else "F32", (blocks,)),
        (
            f"{tensor.name}.quant_state.bitsandbytes__{storage}",
            "U8",
            (_descriptor_bytes(tensor, storage, double_quant),),
        ),
    ]
    if double_quant:
        parts.append((f"{tensor.name}.nested_absmax", "F32", (-(-blocks // NESTED_BLOCKSIZE),)))
        parts.append((f"{tensor.name}.nested_quant_map", "F32", (256,)))
    return parts


def _descriptor_bytes(tensor: Tensor, storage: str, double_quant: bool) -> int:
    descriptor: dict[str, Any] = {
        "quant_type": storage,
        "blocksize": BLOCKSIZE,
        "dtype": "bfloat16",
        "shape": list(tensor.shape),
    }
    if not double_quant:
        return len(json.dumps(descriptor))
    nested = {"nested_blocksize": NESTED_BLOCKSIZE, "nested_dtype": "float32", "nested_offset": 0}
    return len(json.dumps(descriptor | nested)) - 1 + OFFSET_DIGITS


def _header_bytes(parts: list[Part]) -> int:
    """Length of safetensors' JSON header, filled up with spaces to a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, kind, shape in sorted(parts, key=lambda part: (_TYPE_ORDER.index(part[1]), part[0])):
        end = begin + _WIDTHS[kind] * prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    length = len(json.dumps(header, separators=(",", ":")))
    return -(-length // 8) * 8


def _llama_like(config: Config) -> list[Tensor]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    found = [
        Tensor("model.embed_tokens.weight", (vocabulary, hidden)),
        Tensor("model.norm.weight", (hidden,)),
    ]
    if not config.get("tie_word_embeddings", False):
        found.append(Tensor("lm_head.weight", (vocabulary, hidden)))
    layer = _layer(config)
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        found += [Tensor(prefix + tensor.name, tensor.shape, tensor.linear) for tensor in layer]
    return found


def _layer(config: Config) -> list[Tensor]:
    kind, hidden, width = config["model_type"], config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    key_value_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, key_value_heads * head
    biased = bool(config.get("attention_bias", False)) and kind in ("llama", "qwen3")
    input_biased = biased or kind == "qwen2"
    mlp_biased = bool(config.get("mlp_bias", False)) and kind == "llama"
    shapes = {
        "self_attn.q_proj": (queries, hidden, input_biased),
        "self_attn.k_proj": (keys, hidden, input_biased),
        "self_attn.v_proj": (keys, hidden, input_biased),
        "self_attn.o_proj": (hidden, queries, biased),
        "mlp.gate_proj": (width, hidden, mlp_biased),
        "mlp.up_proj": (width, hidden, mlp_biased),
        "mlp.down_proj": (hidden, width, mlp_biased),
    }
    found = [
        Tensor(f"{name}.weight", (rows, columns), linear=True) for name, (rows, columns, _) in shapes.items()
    ]
    found += [Tensor(f"{name}.bias", (rows,)) for name, (rows, _, bias) in shapes.items() if bias]
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if kind == "qwen3":
        norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
    return found + [Tensor(f"{name}.weight", (size,)) for name, size in norms.items()]


def _on_meta(config: Config) -> list[Tensor]:
    from transformers import AutoConfig

    from compression_assets.weights.checkpoints import empty_model, stored_tensors
    from compression_assets.weights.nf4 import linear_layers

    settings = {name: value for name, value in config.items() if name != "model_type"}
    try:
        model = empty_model(AutoConfig.for_model(config["model_type"], **settings))
    except (ValueError, KeyError) as error:
        raise StudyError(
            f"models of type {config['model_type']!r} are not known to transformers, so nothing can be planned for them"
        ) from error
    covered = {f"{name}.weight" for name in linear_layers(model)}
    return [Tensor(name, tuple(t.shape), name in covered) for name, t in stored_tensors(model).items()]
