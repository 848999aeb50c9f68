"""What a step says of itself: progress while it works, then checks and figures, which its manifest keeps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Report = Callable[[int, int, str], None]
"""Called as report(done, total, note) while a step works; `note` is a few words such as 'loss 3.21'."""


def no_report(done: int, total: int, note: str = "") -> None:
    """A Report that says nothing."""


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


MISSING = "missing"
"""Metadata key: how much of the step's work has to be asked for again, so that the next run makes it anew."""


@dataclass(frozen=True)
class StepReport:
    """What a step says about itself. Everything in `metadata` is JSON-serialisable; NaN is not.

    tokens_seen: tokens of content and message ends trained on, over all epochs (0 for a step that does not train).
    peak_bytes: the most that a process which the step started took of its device (0: it started none).
    Reserved metadata keys: "loss_curve" (list of dicts), "layers" (list of dicts, one a layer).
    """

    checks: tuple[Check, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    tokens_seen: int = 0
    peak_bytes: int = 0
