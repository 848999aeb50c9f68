"""What an asset that leaves a directory is: everything that decides its content, and the function that fills it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from compression_assets.graph.resources import StudyStorage
from compression_assets.sources.models import AssetModel
from compression_assets.store.fingerprint_cache import kept_code_fingerprint
from compression_assets.store.fingerprints import fingerprint
from compression_assets.store.reports import Report, StepReport

MemoryEstimate = Callable[[Mapping[str, Path], str], int | None]
"""Peak bytes of a step from its inputs (asset -> directory) on a device ("cpu" or "cuda"); see `memory`."""


@dataclass(frozen=True)
class BuildContext:
    """What a build gets: an empty `output`, its `inputs` (asset -> directory), a device, a way to report.

    device: where it computes; devices: all that it has, `device` first.
    scratch: a directory that survives a killed attempt at the same artifact, and is removed once that is made.
    storage: of the study. run_id: of the run that builds. shared: what builds of one step have in common, such as a
    source that several of them cut; empty at first.
    """

    output: Path
    scratch: Path
    inputs: Mapping[str, Path]
    device: str
    devices: tuple[str, ...]
    report: Report
    storage: StudyStorage
    run_id: str
    shared: dict[str, Any]


Build = Callable[[BuildContext], StepReport]


@dataclass(frozen=True)
class Artifact:
    """What an asset is made of. settings, code and the inputs' content decide whether it must be made again.

    asset: its key. build: fills its directory. settings: JSON of everything in the study that its content depends on.
    code: the modules or functions ("module:name") that make it. inputs: asset keys it reads. checks: names of its
    integrity checks, which stop a run when they fail; warnings: names of its quality checks, which do not.
    sources: model or chat sources that it reads; the content of those on this machine counts as well.
    memory: what it is expected to take of a device's memory, told from the inputs' directories; None: not known.
    uses_device: whether it has any use for a GPU; one that only fetches or asks takes none from others.
    gpus: how many it has on a machine with CUDA, all of one host; see `needed_gpus`.
    """

    asset: str
    build: Build
    settings: Mapping[str, Any]
    code: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    seed: int | None = None
    parent: str | None = None
    technique: str | None = None
    path: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sources: tuple[Any, ...] = ()
    memory: MemoryEstimate | None = None
    uses_device: bool = True
    gpus: int = 1

    @property
    def needed_gpus(self) -> int:
        """GPUs to reserve for its step; 0 for one that has no use for any."""
        return self.gpus if self.uses_device else 0

    @property
    def upstream(self) -> list[dg.AssetKey]:
        """Keys of the assets outside the study that make its sources."""
        found = [source for source in self.sources if isinstance(source, AssetModel)]
        return [dg.AssetKey(source.key.split("/")) for source in found]

    @property
    def code_version(self) -> str:
        """Changes with the settings and the code, not with the inputs (Dagster tracks those itself)."""
        return fingerprint(
            {"settings": self.settings, "code": kept_code_fingerprint(*self.code), "seed": self.seed}
        )[:16]
