"""How many GPUs the steps of a plan have, and how many would do where one is too small."""

from collections.abc import Callable, Sequence
from typing import Protocol

COUNTS = (2, 4, 8)
"""GPUs that one machine may have."""


class Placed(Protocol):
    """A row of a plan, as far as it is needed here."""

    @property
    def asset(self) -> str: ...

    @property
    def gpus(self) -> int: ...


def enough(memory: Callable[[int], int | None], limit: float) -> tuple[int, int] | None:
    """The least of COUNTS at which a step fits into `limit` bytes of each, and those bytes; None where none will do.

    memory: peak bytes of each GPU where the step has so many.
    """
    for count in COUNTS:
        needed = memory(count)
        if needed is not None and needed <= limit:
            return count, needed
    return None


def sentence(rows: Sequence[Placed]) -> str | None:
    """Which steps have several GPUs, or None."""
    counts = sorted({row.gpus for row in rows if row.gpus > 1}, reverse=True)
    if not counts:
        return None
    said = (f"{count} for {', '.join(row.asset for row in rows if row.gpus == count)}" for count in counts)
    return f"GPUs: {'; '.join(said)}; 1 for every other step"
