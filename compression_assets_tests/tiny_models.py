"""Tiny random model directories for tests of checkpoints and techniques. Deterministic, no network."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from compression_assets.sources.random_model import byte_tokenizer


def tiny_model(architecture: str = "llama", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random two-layer model in fp32; no parameter is a constant, so that none can be forgotten unnoticed."""
    settings = {
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "bos_token_id": 256,
        "eos_token_id": 258,
        "pad_token_id": 256,
        **overrides,
    }
    config = (LlamaConfig if architecture == "llama" else Qwen2Config)(**settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1.0 + 0.1 * noise if "norm" in name else 0.1 * noise)
    return model.eval()


def tiny_directory(directory: Path, architecture: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """The same as transformers writes it in bf16, with a byte tokenizer."""
    model = tiny_model(architecture, seed, **overrides)
    model.to(torch.bfloat16).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory
