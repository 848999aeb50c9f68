"""Resources that assets ask for: the device and the storage of the study. What they do is in `machine` and `store`."""

from contextlib import AbstractContextManager
from pathlib import Path

import dagster as dg

from compression_assets.machine.cluster import cluster
from compression_assets.machine.lease import LOCKS, Lease, Memory, lease
from compression_assets.machine.locks import Waiting
from compression_assets.machine.progress import ProgressLog
from compression_assets.machine.shared_progress import SharedProgressLog
from compression_assets.reporting.database import database_of
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.store.object_store import store_of
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.study.model import Study
from compression_assets.study.names import relative_directory


def gpu_key(study: Study) -> str:
    """Name of the study's Gpu in Dagster: a code location may have other studies, and a `gpu` of its own."""
    return f"{study.name}_gpu"


def storage_key(study: Study) -> str:
    """Name of the study's StudyStorage in Dagster."""
    return f"{study.name}_storage"


class Gpu(dg.ConfigurableResource):
    """Hands out one device at a time to one step at a time; on a machine without CUDA, the CPU and its memory.

    device: "auto", "cpu" or "cuda:N"; locks: directory of the locks; as in `machine.lease.lease`.
    """

    device: str = "auto"
    locks: str = str(LOCKS)

    def lease(
        self,
        holder: str,
        memory: Memory = lambda device: None,
        waiting: Waiting | None = None,
        uses_device: bool = True,
        gpus: int = 1,
    ) -> AbstractContextManager[Lease]:
        """As `machine.lease.lease`."""
        return lease(
            holder, memory, waiting, uses_device, device=self.device, gpus=gpus, locks=Path(self.locks)
        )


class StudyStorage(dg.ConfigurableResource):
    """Everything below storage/<study>/, and the downloads that studies share. root: directory of the study."""

    root: str

    @property
    def artifacts(self) -> ArtifactStore:
        return artifacts_of(Path(self.root))

    def local(self, asset: str) -> Path:
        """The directory of an artifact, with its files on this disk. Raises StudyError where there is none."""
        artifacts = self.artifacts
        return artifacts.needed(artifacts.root / relative_directory(asset), asset, "what Dagster shows of it")

    def share(self, file: Path) -> str | None:
        """Copy a file of the study's directory to the store that hosts share, if there is one; its URI there."""
        remote, key = store_of(Path(self.root)), file.relative_to(self.root).as_posix()
        if remote is None:
            return None
        remote.put(key, file)
        return f"{remote.url}/{key}"

    @property
    def database(self) -> MetricsDatabase:
        return database_of(Path(self.root))

    @property
    def downloads(self) -> Path:
        """Hash-checked downloads; beside the studies because their content does not depend on a study."""
        return Path(self.root).parent / ".downloads"

    def progress(self, run_id: str) -> ProgressLog:
        file = Path(self.root) / "progress" / f"{run_id}.jsonl"
        return SharedProgressLog(file, Path(self.root).name) if cluster() else ProgressLog(file)
