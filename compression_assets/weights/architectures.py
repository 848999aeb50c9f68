"""What is known of a model from its config.json alone, before a weight is read.

Where shapes or code decide, the model is built on the meta device and looked at, so that there is no list of
architectures to keep: only for the few types in LLAMA_LIKE is the answer known without importing torch.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Config = Mapping[str, Any]
"""The content of a config.json."""

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Gated feed-forward blocks, nothing but linear layers, and logits that the output layer alone makes."""
OTHER_INPUTS = ("vision_config", "audio_config", "text_config", "llm_config", "thinker_config")
"""Keys of configs that hold another one: models that see or hear."""
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings"),
)
EXTENDED = ("linear", "dynamic", "yarn", "longrope")
"""Rotary scalings whose factor multiplies the positions that a model was trained on."""


def not_a_text_model(config: Config) -> str | None:
    """Why a config cannot be that of a model handled here, or None. Imports nothing."""
    if key := next((key for key in OTHER_INPUTS if isinstance(config.get(key), Mapping)), None):
        return (
            f"this is a multimodal model ({config.get('model_type')!r}, its sizes stand under {key}): give a text-only "
            "checkpoint of it"
        )
    for key in SIZES:
        if isinstance(config.get(key), list):
            return f"{key} is a list, and models whose layers differ in size are not handled: use one with one {key}"
    return None


def kind(config: Config) -> str:
    """The model type. StudyError where there is none."""
    if not isinstance(config.get("model_type"), str):
        raise StudyError("config.json names no model_type: use a model that transformers knows")
    return str(config["model_type"])


def standard(config: Config) -> Config:
    """The config with its sizes under their usual names as well (GPT-2 says n_embd), where it has them at all.

    Raises StudyError for a type that transformers does not know.
    """
    if kind(config) in LLAMA_LIKE:
        return config
    named = as_transformers(config)
    sizes = {key: getattr(named, key) for key in SIZES if getattr(named, key, None) is not None}
    return {**sizes, **config}


def as_transformers(config: Config) -> "PretrainedConfig":
    """The configuration as transformers reads it. StudyError for a type or values that it does not know."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from compression_assets.weights.checkpoints import without_requests

    settings = {
        name: _numbers(value)
        for name, value in config.items()
        if name not in ("model_type", "attn_implementation")
    }
    try:
        return without_requests(AutoConfig.for_model(kind(config), **settings))
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StudyError(f"transformers cannot read a config of type {kind(config)!r}: {reason}") from error


def _numbers(value: Any) -> Any:
    """A value of config.json with its floats that JSON cannot write, as transformers writes and reads them."""
    if isinstance(value, dict):
        return (
            float(value["__float__"])
            if value.keys() == {"__float__"}
            else {k: _numbers(v) for k, v in value.items()}
        )
    return [_numbers(one) for one in value] if isinstance(value, list) else value


def empty(config: Config) -> "PreTrainedModel":
    """The model on the meta device; one config after the other is kept."""
    return _empty(json.dumps(config, sort_keys=True, default=str))


@lru_cache(maxsize=2)
def _empty(config: str) -> "PreTrainedModel":
    from compression_assets.weights.checkpoints import empty_model

    return empty_model(as_transformers(json.loads(config)))


def has_experts(config: Config) -> bool:
    """Whether any feed-forward block is a mixture of experts."""
    return kind(config) not in LLAMA_LIKE and any(
        ".experts." in name for name, _ in empty(config).named_parameters()
    )


def head_makes_logits(config: Config) -> bool:
    """Whether logits are the output layer applied to the last hidden states and nothing else: see `logits`."""
    from compression_assets.weights import logits

    return kind(config) in LLAMA_LIKE or logits.head_makes_logits(empty(config))


def uncovered_share(config: Config) -> float:
    """Share of a model's matrices, embeddings and output layer aside, that quantization leaves as they are."""
    if kind(config) in LLAMA_LIKE:
        return 0.0
    return uncovered_share_of(empty(config))


def uncovered_share_of(model: "PreTrainedModel") -> float:
    """The same of a model, which may be on the meta device."""
    from torch.nn import Embedding

    from compression_assets.weights.layers import linear_weights

    aside = {id(module.weight) for module in model.modules() if isinstance(module, Embedding)}
    aside.add(id(model.get_output_embeddings().weight))
    covered = linear_weights(model)
    matrices = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in aside
    }
    left = sum(size for name, size in matrices.items() if name not in covered)
    return left / sum(matrices.values()) if matrices else 0.0


def positions(config: Config) -> int | None:
    """Tokens that a model reads at most: what it was trained on, times what a rotary scaling stretches it by.

    None for a model without a limit (ALiBi) or whose config does not say.
    """
    if kind(config) not in LLAMA_LIKE:
        config = {**as_transformers(config).to_dict(), **standard(config)}
    if config.get("alibi"):
        return None
    most = config.get("max_position_embeddings")
    if not isinstance(most, int):
        return None
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    stretched = (scaling.get("rope_type") or scaling.get("type")) in EXTENDED
    trained = scaling.get("original_max_position_embeddings") or most
    if not stretched or trained < most:
        return most
    return int(most * float(scaling.get("factor") or 1))
