"""The lines of gpu.py's table, and how fast a step goes by its own reports."""

import time
from dataclasses import dataclass

from compression_assets.planning.devices import GIB

COLUMNS = (
    "step",
    "s",
    "planned s",
    "peak GiB",
    "planned GiB",
    "tokens/s",
    "share of peak",
    "note",
)


@dataclass
class Row:
    """One step. seconds: all of it, files included; planned likewise. speed: tokens a second once it runs.

    share: of the card's bfloat16 peak, in the operations that `plan` counts, recomputed activations included.
    """

    step: str
    seconds: float | None = None
    planned_seconds: float | None = None
    peak: int | None = None
    planned_peak: int | None = None
    speed: float | None = None
    share: float | None = None
    note: str = ""

    def shown(self) -> tuple[str, ...]:
        """Cells, in the order of COLUMNS."""
        gib = (None if size is None else size / GIB for size in (self.peak, self.planned_peak))
        figures = [(self.seconds, 1), (self.planned_seconds, 1), *((size, 1) for size in gib)]
        figures += [(self.speed, 0), (self.share, 2)]
        cells = ("" if value is None else f"{value:,.{digits}f}" for value, digits in figures)
        return (self.step, *cells, self.note)


class Pace:
    """A `Report` that remembers when how much was done."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def __call__(self, done: int, total: int, what: str) -> None:
        further = not self.seen or done > self.seen[-1][1]
        if further and not what.startswith("layers"):  # which are no tokens
            self.seen.append((time.perf_counter(), done))

    @property
    def speed(self) -> float | None:
        """Done a second from the first report to the last: what warms up comes before the first."""
        if len(self.seen) < 2:
            return None
        (begun, first), (ended, last) = self.seen[0], self.seen[-1]
        return (last - first) / (ended - begun)
