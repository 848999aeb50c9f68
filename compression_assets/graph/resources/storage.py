"""The storage of one study as a Dagster resource: artifacts, database, progress."""

from pathlib import Path

import dagster as dg

from compression_assets.machine.progress import ProgressLog
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.store.metrics_db import MetricsDatabase


class StudyStorage(dg.ConfigurableResource):
    """Everything below storage/<study>/, and the downloads that studies share.

    root: directory of the study. database_patience: seconds that a step waits for another one to write to the
    database, or for somebody who has it open for writing.
    """

    root: str
    database_patience: float = 5.0

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(Path(self.root))

    @property
    def database(self) -> MetricsDatabase:
        return MetricsDatabase(Path(self.root) / "compression.duckdb", self.database_patience)

    @property
    def downloads(self) -> Path:
        """Hash-checked downloads; beside the studies because their content does not depend on a study."""
        return Path(self.root).parent / ".downloads"

    def progress(self, run_id: str) -> ProgressLog:
        return ProgressLog(Path(self.root) / "progress" / f"{run_id}.jsonl")
