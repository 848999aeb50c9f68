"""Models and rows of random numbers for gpu.py: the paper's shapes, or tiny ones."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_assets.planning.models import known_models
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.weights.shapes import Config


@dataclass(frozen=True)
class Shapes:
    """student, teacher: configs. length: tokens of a row. rows: data asset -> rows. new_tokens: of an answer."""

    about: str
    student: Config
    teacher: Config
    length: int
    rows: dict[str, int]
    new_tokens: int


def paper() -> Shapes:
    """Qwen2.5-3B and 7B, rows of 512 tokens; few of them, since every step is timed once it runs."""
    known = known_models()
    rows = {"distillation_set": 64, "finetuning_set": 40, "calibration_set": 32, "evaluation_set": 64}
    about = "Qwen2.5-3B taught by Qwen2.5-7B, rows of 512 tokens"
    return Shapes(about, known["Qwen/Qwen2.5-3B"], known["Qwen/Qwen2.5-7B"], 512, rows, 128)


def tiny() -> Shapes:
    """The same architecture in two layers; every matrix one that 4-bit kernels of a CPU take."""
    student = {
        **{"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
            "tie_word_embeddings": True,
        },
    }
    teacher = {**student, "hidden_size": 128, "vocab_size": 520, "tie_word_embeddings": False}
    rows = {"distillation_set": 40, "finetuning_set": 16, "calibration_set": 4, "evaluation_set": 16}
    return Shapes("two layers of width 64, rows of 32 tokens", student, teacher, 32, rows, 4)


def random_rows(count: int, length: int, vocabulary: int, seed: int) -> TokenDataset:
    """Rows of random tokens, all of them content."""
    chance = random.Random(seed)
    return TokenDataset(
        [
            TokenRow(str(row), [chance.randrange(vocabulary) for _ in range(length)], [True] * length)
            for row in range(count)
        ]
    )


def write_model(config: Config, directory: Path, device: str) -> None:
    """A model of a config with transformers' initial weights, made on the device and written in bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from compression_assets.sources.random_model import byte_tokenizer
    from compression_assets.weights.checkpoints import quiet

    settings: dict[str, Any] = dict(config)
    torch.manual_seed(0)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(settings.pop("model_type"), **settings), dtype=torch.bfloat16
        )
    with quiet():
        made.save_pretrained(directory, max_shard_size="1TB")
    byte_tokenizer().save_pretrained(directory)
