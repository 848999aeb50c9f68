"""Whether a GGUF file says what its model directory says: the same tokens of varied texts, the same predictions."""

from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines import llama_cpp
from compression_assets.text.samples import TEXTS

if TYPE_CHECKING:
    import numpy as np

DIVERGENCE = 0.02
"""Nats of mean KL divergence: bfloat16 sums in another order come to some 0.0005."""

LENGTH = 256
"""Tokens whose predictions are compared."""


def check_tokens(directory: Path, found: list[list[int]], texts: list[str], reader: str) -> None:
    """StudyError if `found`, the tokens of `texts` as `reader` cut them, are not those of a model directory."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    for text, ids in zip(texts, found, strict=True):
        if tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
            raise StudyError(
                f"{reader} tokenises {text[:40]!r} otherwise than the tokenizer of {directory}; "
                "the file was not kept: use --format hf"
            )


def check_in_llama_cpp(directory: Path, file: Path, ids: list[int]) -> str:
    """Compare tokens, and predictions after each of `ids`, with those of llama.cpp itself; returns what was found.

    Raises StudyError where they differ, or if llama.cpp cannot load the file.
    """
    if not llama_cpp.available():
        return f"not tried in llama.cpp itself: {llama_cpp.INSTALL} and export again"
    texts = sample_texts(directory)
    tokens, logits = llama_cpp.ask(file, texts, ids[:LENGTH])
    check_tokens(directory, tokens, texts, "llama.cpp")
    divergence = _divergence(directory, ids[:LENGTH], logits)
    if not divergence < DIVERGENCE:
        raise StudyError(
            f"llama.cpp predicts otherwise than {directory} (KL divergence {divergence:.3g} nats); "
            "the file was not kept: report this, and use --format hf"
        )
    return f"llama.cpp cuts {len(texts)} texts into the same tokens and predicts the same (KL {divergence:.1g} nats)"


def sample_texts(directory: Path) -> list[str]:
    """TEXTS, and texts between special tokens, where SentencePiece puts spaces or does not."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    between = [f"{TEXTS[0]}{token}{TEXTS[3]}{token}\n{TEXTS[1]}" for token in tokenizer.all_special_tokens]
    return [*TEXTS, *between]


def _divergence(directory: Path, ids: list[int], logits: "np.ndarray") -> float:
    """Mean KL divergence (nats) of predictions from the model's own, computed in float32 from its published weights."""
    import torch

    from compression_assets.weights.checkpoints import load_for_scoring

    model = load_for_scoring(directory, "cpu", torch.float32)
    with torch.inference_mode():
        own = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    other = torch.from_numpy(logits).log_softmax(-1)
    return float((own.exp() * (own - other)).sum(-1).mean())
