"""What a candidate will weigh and take, before any work on it."""

from collections.abc import Iterable
from pathlib import Path

from compression_assets.planning.costs import expected_seconds
from compression_assets.planning.models import config_of
from compression_assets.planning.steps import Predictions
from compression_assets.store.artifact_store import ArtifactStore, Manifest
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL, model_key, relative_directory
from compression_assets.study.orderings import Ordering
from compression_assets.techniques.prediction import StepContext
from compression_assets.weights import shapes
from compression_assets.weights.architectures import Config, standard

MIB = 2**20


def base_config(study: Study, root: Path, downloads: Path) -> Config:
    """The base model's config. Raises StudyError when it is on this machine nowhere."""
    return standard(config_of(study.base_model, downloads, root / relative_directory(BASE_MODEL)))


def predicted_mib(study: Study, ordering: Ordering, base: Config) -> float:
    """MiB of an ordering's weights file. Raises StudyError when one of its steps cannot be applied."""
    found = Predictions(study, base, StepContext(max_length=study.data.max_length))
    return shapes.file_bytes(found.of(study.nodes[ordering.path]).config) / MIB


def predicted_seconds(
    study: Study, root: Path, orderings: Iterable[Ordering], parts: tuple[str, ...]
) -> float:
    """Seconds that orderings of a study will take with these parts of their measurement, as this machine has been.

    What is there already takes none. Expected seconds are scaled by what the models in the storage took.
    """
    store, expected = artifacts_of(root), expected_seconds(study)
    models = {model_key(node) for node in study.nodes.values() if node.parent is not None}
    taken = {asset: made.seconds for asset in models if (made := _manifest(store, asset)) is not None}
    needed = {
        asset
        for ordering in orderings
        for asset in (
            *(model_key(study.nodes[ordering.path[:length]]) for length in range(1, len(ordering.path) + 1)),
            *(f"{part}_{ordering.key}" for part in parts),
        )
    }
    scale = sum(taken.values()) / sum(expected[asset] for asset in taken) if taken else 1.0
    return scale * sum(expected[asset] for asset in needed if _manifest(store, asset) is None)


def _manifest(store: ArtifactStore, asset: str) -> Manifest | None:
    return store.manifest(store.root / relative_directory(asset), asset)
