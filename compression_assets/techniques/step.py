"""What a technique is handed and what it gives back. No technique and no Dagster in here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Report = Callable[[int, int, str], None]
"""Called as report(done, total, note) while a step works; `note` is a few words such as 'loss 3.21'."""


def no_report(done: int, total: int, note: str = "") -> None:
    """A Report that says nothing."""


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


@dataclass(frozen=True)
class Check:
    """A check that a step made on its own result.

    blocking: a matter of integrity; a failed one stops whatever reads the result. Otherwise it is a matter of
    quality, and shown as a warning.
    """

    name: str
    passed: bool
    detail: str
    blocking: bool = True


@dataclass(frozen=True)
class StepReport:
    """What a step says about itself. Everything in `metadata` is JSON-serialisable; NaN is not.

    tokens_seen: predicted content tokens trained on, over all epochs (0 for a step that does not train).
    Reserved metadata keys: "loss_curve" (list of dicts), "layers" (list of dicts, one a layer).
    """

    checks: tuple[Check, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    tokens_seen: int = 0
