"""The tensors of a model and the bytes of its saved file, from the numbers of its config alone.

Llama-like architectures are counted without torch; another one is built on torch's meta device, which takes seconds
but no memory. Nothing about training in here.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.weights.formats.format import WIDTHS, ModelTensor, Part
from compression_assets.weights.formats.layout import Layout, layout_in, stored_parts

Config = Mapping[str, Any]
"""The keys of a config.json, as far as they decide shapes and number formats."""

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")


def tensors(config: Config) -> list[ModelTensor]:
    """Every stored tensor (tied ones once). Raises StudyError for an architecture that transformers does not know."""
    return list(_tensors(json.dumps(dict(config), sort_keys=True)))


@lru_cache(maxsize=64)
def _tensors(config: str) -> tuple[ModelTensor, ...]:
    """Kept, since a plan asks for the same ones again and again, and the meta device takes seconds."""
    found: dict[str, Any] = json.loads(config)
    return tuple(_llama_like(found) if found["model_type"] in LLAMA_LIKE else _on_meta(found))


def parameters(config: Config) -> int:
    """Number of parameters, tied ones once."""
    return sum(tensor.size for tensor in tensors(config))


def attention_width(config: Config) -> int:
    """Heads times the size of one; 0 where nothing attends."""
    if not config.get("num_attention_heads"):
        return 0
    heads = int(config["num_attention_heads"])
    head: Any = config.get("head_dim") or config["hidden_size"] // heads
    return heads * int(head)


def linear_parameters(config: Config) -> int:
    """Weights of the linear layers that quantization covers: all but embeddings and the output layer."""
    return sum(tensor.size for tensor in tensors(config) if tensor.linear)


def file_bytes(config: Config, layout: Layout | None = None) -> int:
    """Bytes of the safetensors file, its header included. layout: None for the formats that the config describes.

    Exact but for descriptions in JSON: 4-bit formats print a float in each, so that a layer may be off by a few bytes.
    """
    parts = dict(stored_parts(tensors(config), layout or layout_in(config)))
    return 8 + _header_bytes(parts) + sum(part.bytes for part in parts.values())


def _header_bytes(parts: Mapping[str, Part]) -> int:
    """Length of safetensors' JSON header, filled up with spaces to a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    order = list(WIDTHS)
    begin = 0
    for name, part in sorted(parts.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        end = begin + part.bytes
        header[name] = {"dtype": part.dtype, "shape": list(part.shape), "data_offsets": [begin, end]}
        begin = end
    length = len(json.dumps(header, separators=(",", ":")))
    return -(-length // 8) * 8


def _llama_like(config: Config) -> list[ModelTensor]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    found = [
        ModelTensor("model.embed_tokens.weight", (vocabulary, hidden), "embedding"),
        ModelTensor("model.norm.weight", (hidden,)),
    ]
    if not config.get("tie_word_embeddings", False):
        found.append(ModelTensor("lm_head.weight", (vocabulary, hidden), "head"))
    layer = _layer(config)
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        found += [ModelTensor(prefix + tensor.name, tensor.shape, tensor.role) for tensor in layer]
    return found


def _layer(config: Config) -> list[ModelTensor]:
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
        ModelTensor(f"{name}.weight", (rows, columns), "linear")
        for name, (rows, columns, _) in shapes.items()
    ]
    found += [ModelTensor(f"{name}.bias", (rows,)) for name, (rows, _, bias) in shapes.items() if bias]
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if kind == "qwen3":
        norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
    return found + [ModelTensor(f"{name}.weight", (size,)) for name, size in norms.items()]


def _on_meta(config: Config) -> list[ModelTensor]:
    from transformers import AutoConfig

    from compression_assets.weights.checkpoints import empty_model, model_tensors

    settings = {name: value for name, value in config.items() if name != "model_type"}
    try:
        model = empty_model(AutoConfig.for_model(config["model_type"], **settings))
    except (ValueError, KeyError) as error:
        raise StudyError(
            f"models of type {config['model_type']!r} are not known to transformers, so nothing can be planned for them"
        ) from error
    return model_tensors(model)
