"""Writing a model that was read from somebody's files as the directory that every step starts from."""

from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.weights.checkpoints import MASTERS, stored_tensors
from compression_assets.weights.files import write_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    output_dir: Path,
    dtype: str,
    masters: bool,
) -> list[str]:
    """Write a model directory in `dtype`, with the weights as loaded in `masters/` if asked for.

    Converts the model in place. Returns what to note of the masters.
    """
    import torch

    if masters:
        write_weights(stored_tensors(model), output_dir / MASTERS)
    # In the names that the model has: the format it was released in may have others, and one expert a tensor.
    model.to(getattr(torch, dtype)).save_pretrained(
        output_dir, max_shard_size="1TB", save_original_format=False
    )
    tokenizer.save_pretrained(output_dir)
    return ["released with more digits than bfloat16 has: steps start from them"] if masters else []
