"""What a technique is handed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compression_assets.store.reports import Report, no_report


@dataclass(frozen=True)
class StepInputs:
    """One step of an ordering.

    parent: model directory to start from. output: empty directory to write the new model into. recipe: an instance
    of the technique's Recipe. data: asset key -> directory, for what the technique `reads`. models: name ->
    directory, for the earlier models that the technique's `reads` names. device: "cpu" or "cuda:N". devices:
    all that the step has, `device` first; empty where that is the only one. scratch: a directory that survives
    a killed attempt at the same step with the same inputs, and is removed after success; None: nothing to
    resume from. path: every step from the base to this one, itself included.
    """

    parent: Path
    output: Path
    recipe: Any
    data: Mapping[str, Path]
    seed: int
    device: str = "cpu"
    devices: tuple[str, ...] = ()
    report: Report = no_report
    scratch: Path | None = None
    path: tuple[str, ...] = ()
    models: Mapping[str, Path] = field(default_factory=dict)
