"""What a technique is handed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_assets.store.reports import Report, no_report


@dataclass(frozen=True)
class StepInputs:
    """One step of an ordering.

    parent: model directory to start from. output: empty directory to write the new model into.
    recipe: an instance of the technique's Recipe. data: asset key -> directory, for the technique's `inputs`.
    device: "cpu" or "cuda:N". scratch: a directory that survives a killed attempt at the same step with the same
    inputs, and is removed after success; None: nothing to resume from. path: every step from the base to this one,
    itself included. last_quantized: the model that the last quantization before this step left, where the recipe says
    `keep_absmax`.
    """

    parent: Path
    output: Path
    recipe: Any
    data: Mapping[str, Path]
    seed: int
    device: str = "cpu"
    report: Report = no_report
    scratch: Path | None = None
    path: tuple[str, ...] = ()
    last_quantized: Path | None = None
