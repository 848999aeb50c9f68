"""Tokens, arithmetic and bytes of each step of a study. Times are made of them in `plan`; memory is in `memory`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_assets.planning.shapes import Config, linear_parameters
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.study.model import Study
from compression_assets.study.names import DATASETS, relative_directory
from compression_assets.training.schedule import TrainingRecipe
from compression_assets.training.teacher.logits_coding import stored_bytes
from compression_assets.training.teacher.teacher_logits import TeacherLogitsRecipe

CONTENT_SHARE = 0.75
"""Content tokens among all tokens of a rendered chat: 0.72 in the demo's short chats, more in long ones."""
ROW_FILL = 0.95
"""Tokens of a conversation over max_length, where a split is given in conversations: long chats are cut there."""
VALUE_BYTES = 2
BY_OUTPUT_IDLE = 3.5
"""Quantizing column by column is thousands of small operations a matrix: measured 104 to 135 s where FLOPs say 33."""


@dataclass(frozen=True)
class Volume:
    """A split: its conversations, tokens with template, and tokens that training learns. measured: read from disk.

    Before the split is there, what ends messages is not known and not in `trained`: up to a tenth of short chats.
    """

    rows: int
    tokens: int
    trained: int
    measured: bool = False

    @property
    def row_length(self) -> float:
        return self.tokens / self.rows if self.rows else 0.0


def volumes(study: Study, root: Path | None = None) -> dict[str, Volume]:
    """Split -> its volume: as prepared under `root`, where it is, else what the study asks for."""
    return {split: _prepared(split, root) or _asked(study, split) for split in study.data.splits.sizes()}


def _prepared(split: str, root: Path | None) -> Volume | None:
    if root is None:
        return None
    asset = DATASETS[split]
    manifest = ArtifactStore(root).manifest(root / relative_directory(asset), asset)
    if manifest is None:
        return None
    found = manifest.metadata
    return Volume(found["rows"], found["tokens"], found["trained_tokens"], measured=True)


def _asked(study: Study, split: str) -> Volume:
    size, longest = study.data.splits.sizes()[split], study.data.max_length
    if size.conversations is not None:
        tokens = int(size.conversations * longest * ROW_FILL)
        return Volume(size.conversations, tokens, int(tokens * CONTENT_SHARE))
    content = size.tokens or 0
    tokens = int(content / CONTENT_SHARE)
    return Volume(max(1, round(tokens / (longest * 0.7))), tokens, content)


def epochs_of(recipe: TrainingRecipe, volume: Volume) -> float:
    """Passes over the data, a limit on tokens included."""
    limit = getattr(recipe, "max_tokens", None)
    return min(recipe.epochs, limit / volume.trained) if limit and volume.trained else recipe.epochs


def forward_flops(config: Config, volume: Volume) -> float:
    """One pass over a split without the output layer: 2 a weight and token, and attention over whole rows."""
    attention = 4.0 * volume.row_length * config["num_hidden_layers"] * _attention_width(config)
    return volume.tokens * (2.0 * linear_parameters(config) + attention)


def head_flops(config: Config, volume: Volume) -> float:
    """The output layer over a split's trained tokens, the only ones that logits are made for."""
    return 2.0 * volume.trained * config["vocab_size"] * config["hidden_size"]


def training_flops(config: Config, recipe: TrainingRecipe, volume: Volume) -> float:
    """Forward and twice as much backward; checkpointing runs forward once more."""
    body = forward_flops(config, volume) * (4 if recipe.gradient_checkpointing else 3)
    return epochs_of(recipe, volume) * (body + 3 * head_flops(config, volume))


def by_output_flops(config: Config, volume: Volume) -> float:
    """Quantizing layer by layer, in FLOPs of bfloat16.

    Three passes and second moments in float32 count twice, inverses and output errors in float64 four times.
    """
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], _attention_width(config)
    moments = 2.0 * volume.tokens * (5 * hidden**2 + heads**2 + inner**2)
    inverses = 2.0 * (5 * hidden**3 + heads**3 + inner**3)
    errors = 4.0 * (hidden**2 * (3 * heads + 2 * inner) + hidden * heads**2 + hidden * inner**2)
    layers = config["num_hidden_layers"] * (2 * moments + 4 * (inverses + errors))
    return 6 * forward_flops(config, volume) + layers


def scoring_flops(config: Config, volume: Volume) -> float:
    return forward_flops(config, volume) + head_flops(config, volume)


def teacher_head_flops(recipe: TeacherLogitsRecipe, teacher: Config, volume: Volume, epochs: float) -> float:
    """What a student's step spends on the teacher: its output layer, where hidden states are stored."""
    return epochs * head_flops(teacher, volume) if recipe.coding == "hidden" else 0.0


def logits_bytes(recipe: TeacherLogitsRecipe, teacher: Config, student: Config, volume: Volume) -> int:
    """Bytes of the stored distributions over a split's trained tokens."""
    vocabulary = min(teacher["vocab_size"], student["vocab_size"])
    if recipe.coding == "dense":
        return volume.trained * VALUE_BYTES * vocabulary
    if recipe.coding == "hidden":
        return VALUE_BYTES * teacher["hidden_size"] * (volume.trained + vocabulary)
    samples = recipe.samples if recipe.coding == "sampled" else 0
    return volume.trained * stored_bytes(recipe.k, samples, vocabulary)


def _attention_width(config: Config) -> int:
    heads = int(config["num_attention_heads"])
    head: Any = config.get("head_dim") or config["hidden_size"] // heads
    return heads * int(head)
