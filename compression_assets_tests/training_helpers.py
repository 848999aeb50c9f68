"""Tiny models and datasets for the tests of training. No test in here."""

import copy
import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.training.finetuning import FinetuneRecipe
from compression_assets.training.resuming import Checkpoints

VOCABULARY = 64


def tiny_model(
    kind: str = "llama", seed: int = 0, vocabulary: int = VOCABULARY, tied: bool = True
) -> PreTrainedModel:
    """A float32 model of two layers."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
    }
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes)).eval()
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def tiny_dataset(rows: int = 12, seed: int = 0, longest: int = 20) -> TokenDataset:
    """Rows of random tokens below VOCABULARY - 4: three of template, then about three in four are content.

    Half of the others end a message.
    """
    chance, ending = random.Random(seed), random.Random(seed)
    made = []
    for index in range(rows):
        length = chance.randint(8, longest)
        ids = [chance.randrange(VOCABULARY - 4) for _ in range(length)]
        content = [place >= 3 and chance.random() < 0.75 for place in range(length)]
        ends = [place for place in range(3, length) if not content[place] and ending.random() < 0.5]
        made.append(TokenRow(f"row-{index}", ids, content, ends))
    return TokenDataset(made)


def save_model(model: PreTrainedModel, directory: Path) -> Path:
    """The model in bf16 with a tokenizer of one token an id."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(directory)
    return save_tokenizer(directory, {f"t{index}": index for index in range(model.config.vocab_size)})


def save_tokenizer(directory: Path, vocabulary: dict[str, int]) -> Path:
    """A word-level tokenizer with this vocabulary."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="t0").save_pretrained(directory)
    return directory


def recipe_of(**changes: Any) -> FinetuneRecipe:
    """Plain settings: one epoch, no warm-up, batches of four."""
    plain = {
        "epochs": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "batch_size": 4,
        "gradient_accumulation": 1,
    }
    return FinetuneRecipe(**(plain | changes))


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def checkpoints_in(directory: Path, identity: str = "run") -> Checkpoints:
    """Saved every second step."""
    return Checkpoints(directory, every=2, identity=identity)


class Killed(Exception):
    """Raised in a report to end a run."""
