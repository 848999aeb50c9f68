"""What a store of teacher logits is made of: its recipe, and the files that its rows are in."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from compression_assets.strict import Strict
from compression_assets.text.datasets import TokenDataset

HEAD = "head.safetensors"


class TeacherLogitsRecipe(Strict):
    """How the teacher's distributions are kept.

    hidden: the teacher's last hidden states, 2 bytes a dimension, and its output layer once. Exact at any temperature,
    in a fraction of the bytes of logits, for one more matrix product in each step.
    dense: bfloat16 logits, 2 bytes a vocabulary entry, for any temperature.
    top_k: the k largest and the mass of the rest, for the temperature it was made at. With the default k every measured
    cosine with the exact gradient is above 0.99 at temperature 1, in 120 bytes a token of a vocabulary of 151,936
    (benchmarks/RESULTS.md). At temperature 2 no small k does it; `compression check` warns.
    load_in_8bit: run the teacher through bitsandbytes' LLM.int8 (threshold 6.0, the paper's); CUDA only, elsewhere
    it is left out and noted in the manifest.
    """

    coding: Literal["dense", "hidden", "top_k"] = "hidden"
    k: int = Field(default=36, ge=1, description="largest probabilities kept (top_k only)")
    batch_size: int = Field(default=16, ge=1, description="rows in one forward pass of the teacher")
    rows_per_shard: int = Field(
        default=256, ge=1, description="an interrupted run goes on after its last whole shard"
    )
    load_in_8bit: bool = False

    @model_validator(mode="after")
    def _sizes_have_their_coding(self) -> Self:
        if "k" in self.model_fields_set and "coding" not in self.model_fields_set:
            raise ValueError("k belongs to coding: top_k; name that as coding")
        return self


def shard_path(directory: Path, index: int) -> Path:
    """File of a shard of rows."""
    return directory / f"shard-{index:05d}.safetensors"


def shard_rows(dataset: TokenDataset, recipe: TeacherLogitsRecipe) -> list[range]:
    """Row indices of each shard."""
    size = recipe.rows_per_shard
    return [range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]


def total_bytes(paths: Iterable[Path]) -> int:
    """Bytes of some files."""
    return sum(path.stat().st_size for path in paths)
