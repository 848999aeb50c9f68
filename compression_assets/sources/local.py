"""Which files on this machine a source reads: their content, not their path, decides whether work is still valid."""

from pathlib import Path
from typing import Any

from compression_assets.sources.models import AssetModel, DirectoryModel, GgufModel
from compression_assets.sources.paths import local_path
from compression_assets.sources.rows import JsonlRows
from compression_assets.sources.texts import TextFile
from compression_assets.weights.files import NAMED_TEMPLATES


def local_files(source: Any) -> list[Path]:
    """The files of a source that reads local ones; none for one that is pinned by a revision, a hash or a seed.

    Raises StudyError for the directory of an asset that has not made it.
    """
    if isinstance(source, DirectoryModel | AssetModel):
        directory = source.directory() if isinstance(source, AssetModel) else local_path(source.path)
        found = [*directory.iterdir(), *(directory / NAMED_TEMPLATES).glob("*")]
        return sorted(file for file in found if file.is_file())
    if isinstance(source, GgufModel):
        return [local_path(source.path)]
    if isinstance(source, JsonlRows | TextFile):
        return [source.resolved()]
    return []
