"""The table lineage: what every model of a study that is on disk was made from, how, and at what cost."""

from collections.abc import Iterator
from typing import Any

from compression_assets.reporting.artifacts import ArtifactReader
from compression_assets.study.leaderboard_models import leaderboard_models
from compression_assets.study.model import Study
from compression_assets.study.names import TEACHER_MODEL, model_key


def lineage(study: Study, reader: ArtifactReader) -> Iterator[dict[str, Any]]:
    """A row for each: nodes of the orderings, the teacher, external models."""
    for node in study.nodes.values():
        parent = study.nodes[node.parent].key if node.parent is not None else None
        yield from _row(model_key(node), node.key, parent, node.final.text if node.final else None, reader)
    if study.distils and study.teacher is not None:
        yield from _row(TEACHER_MODEL, "teacher", None, None, reader)
    for model in leaderboard_models(study):
        if model.ordering is None:
            yield from _row(model.model, model.key, None, None, reader)


def _row(
    asset: str, model: str, parent: str | None, ordering: str | None, reader: ArtifactReader
) -> Iterator[dict[str, Any]]:
    made = reader.manifest(asset)
    if made is None:
        return
    yield {
        "model": model,
        "asset": asset,
        "ordering": ordering,
        "parent": parent,
        "technique": made.technique,
        "step": len(made.path),
        "recipe": dict(made.recipe),
        "recipe_fingerprint": made.recipe_fingerprint,
        "fingerprint": made.fingerprint,
        "data_version": made.data_version,
        "seed": made.seed,
        "tokens_seen": made.tokens_seen,
        "seconds": made.seconds,
        "peak_memory_mib": made.peak_memory_bytes / 2**20,
        "device": made.device,
        "path": str(reader.directory(asset)),
        "created_at": made.created_at,
    }
