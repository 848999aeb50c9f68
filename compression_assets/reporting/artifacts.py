"""Artifacts of a study by asset, read as far as they are whole."""

from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.store.artifact_store import ArtifactStore, Manifest
from compression_assets.study.names import relative_directory


class ArtifactReader:
    """Manifests of artifacts by asset. One that cannot be read or whose files are damaged is left out, and why."""

    def __init__(self, store: ArtifactStore):
        self._store = store
        self.damaged: dict[str, str] = {}

    def directory(self, asset: str) -> Path:
        return self._store.root / relative_directory(asset)

    def manifest(self, asset: str) -> Manifest | None:
        try:
            return self._store.manifest(self.directory(asset), asset)
        except StudyError as error:
            self.damaged[asset] = str(error)
            return None

    def whole(self, asset: str) -> Manifest | None:
        """The manifest of an artifact whose files are what it says."""
        made = self.manifest(asset)
        if made is None:
            return None
        try:
            self._store.local(self.directory(asset), asset)
        except StudyError as error:
            self.damaged[asset] = str(error)
            return None
        if problem := self._store.damage(self.directory(asset), made, thorough=False):
            self.damaged[asset] = problem
            return None
        return made
