"""How much data a study has, and how large the teacher's logits are. What a step costs is said by its technique."""

from pathlib import Path

from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.study.model import Study
from compression_assets.study.names import DATASETS, relative_directory
from compression_assets.training.teacher.logits_coding import stored_bytes
from compression_assets.training.teacher.shards import TeacherLogitsRecipe
from compression_assets.training.work import Volume
from compression_assets.weights.shapes import Config

CONTENT_SHARE = 0.75
"""Content tokens among all tokens of a rendered chat: 0.72 in the demo's short chats, more in long ones."""
ROW_FILL = 0.95
"""Tokens of a conversation over max_length, where a split is given in conversations: long chats are cut there."""
VALUE_BYTES = 2


def volumes(study: Study, root: Path | None = None) -> dict[str, Volume]:
    """Split -> its volume: as prepared under `root`, where it is, else what the study asks for."""
    return {split: _prepared(split, root) or _asked(study, split) for split in study.data.splits.sizes()}


def _prepared(split: str, root: Path | None) -> Volume | None:
    if root is None:
        return None
    asset = DATASETS[split]
    manifest = artifacts_of(root).manifest(root / relative_directory(asset), asset)
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


def logits_bytes(recipe: TeacherLogitsRecipe, teacher: Config, student: Config, volume: Volume) -> int:
    """Bytes of the stored distributions over a split's trained tokens."""
    vocabulary = min(teacher["vocab_size"], student["vocab_size"])
    if recipe.coding == "dense":
        return volume.trained * VALUE_BYTES * vocabulary
    if recipe.coding == "hidden":
        return VALUE_BYTES * teacher["hidden_size"] * (volume.trained + vocabulary)
    return volume.trained * stored_bytes(recipe.k, vocabulary)
