"""What steps write to stdout and stderr, in the object store: Dagster's pages show it wherever a step ran.

Named in the dagster.yaml of a study on a cluster. Objects: <study>/logs/<run>/…/<step>.<out|err>[.partial].
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.storage.cloud_storage_compute_log_manager import (
    CloudStorageComputeLogManager,
    PollingComputeLogSubscriptionManager,
)
from dagster._core.storage.compute_log_manager import CapturedLogSubscription, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from compression_assets.errors import StudyError
from compression_assets.machine.cluster import STORE
from compression_assets.store.object_store import ObjectStore

UPLOAD_EVERY = 10
"""Seconds between two copies of what a step at work has written so far."""


class StoreComputeLogs(CloudStorageComputeLogManager[Any], ConfigurableClass):
    """Captured on the step's host, then put into the object store of COMPRESSION_STORE. study: its name.

    A copy that cannot be put there is said on stderr: no step fails for the sake of its log.
    """

    def __init__(self, study: str, inst_data: ConfigurableClassData | None = None):
        self._store = ObjectStore(f"{os.environ[STORE].rstrip('/')}/{study}")
        self._inst_data = inst_data
        self._folder = tempfile.TemporaryDirectory(prefix="compression_logs_")
        self._local = LocalComputeLogManager(self._folder.name)
        self._subscriptions = PollingComputeLogSubscriptionManager(self)

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> Any:
        return {"study": dg.Field(str)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "StoreComputeLogs":
        return cls(config_value["study"], inst_data)

    @property
    def local_manager(self) -> LocalComputeLogManager:
        return self._local

    @property
    def upload_interval(self) -> int | None:
        return UPLOAD_EVERY

    def upload_to_cloud_storage(
        self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
    ) -> None:
        file = self._file(log_key, io_type)
        if not file.exists() or (partial and not file.stat().st_size):
            return
        try:
            # Read at once: it may grow meanwhile.
            self._store.put(self._key(log_key, io_type, partial), file.read_bytes())
        except StudyError as error:
            print(f"the log of this step is not in the store: {error}", file=sys.__stderr__)

    def download_from_cloud_storage(
        self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
    ) -> None:
        found = self._store.read(self._key(log_key, io_type, partial))
        file = self._file(log_key, io_type, partial)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"" if found is None else found[0])

    def cloud_storage_has_logs(
        self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
    ) -> bool:
        return self._store.tag(self._key(log_key, io_type, partial)) is not None

    def delete_logs(self, log_key: Sequence[str] | None = None, prefix: Sequence[str] | None = None) -> None:
        self._local.delete_logs(log_key, prefix)
        folder = "/".join(("logs", *(prefix or (log_key or ())[:-1])))
        names = [str(one["path"]) for one in self._store.objects(folder)]
        stem = f"{folder}/{log_key[-1]}." if log_key else folder
        self._store.delete(name for name in names if name.startswith(stem))

    def display_path_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> str:
        return f"{self._store.url}/{self._key(log_key, io_type)}"

    def download_url_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> str | None:
        return None

    def on_subscribe(self, subscription: CapturedLogSubscription) -> None:
        self._subscriptions.add_subscription(subscription)

    def on_unsubscribe(self, subscription: CapturedLogSubscription) -> None:
        self._subscriptions.remove_subscription(subscription)

    def dispose(self) -> None:
        self._subscriptions.dispose()
        self._local.dispose()
        self._folder.cleanup()

    def _key(self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False) -> str:
        return "/".join(("logs", *log_key)) + f".{IO_TYPE_EXTENSION[io_type]}{'.partial' if partial else ''}"

    def _file(self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False) -> Path:
        return Path(self._local.get_captured_local_path(log_key, IO_TYPE_EXTENSION[io_type], partial=partial))
