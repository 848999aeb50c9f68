"""How far a run is: steps append events to a file, whoever watches the run reads them. No Dagster.

A file works for steps in the same process and in processes of their own alike.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPORT_EVERY = 1.0
"""Seconds between two events of the same step."""

TRUST = 60.0
"""Expected seconds of work after which what was measured counts as much as what was expected."""


class ProgressLog:
    """Appends the events of one run: `started`, `working` (done of total), `finished`, `failed`."""

    def __init__(self, file: Path):
        self.file = file
        self._last = 0.0

    def event(self, asset: str, kind: str, **fields: Any) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"asset": asset, "kind": kind, "time": time.time(), **fields})
        with self.file.open("a") as handle:
            handle.write(line + "\n")

    def working(self, asset: str, done: int, total: int, note: str) -> bool:
        """Record progress inside a step, at most once a REPORT_EVERY; whether it was recorded."""
        now = time.monotonic()
        if now - self._last < REPORT_EVERY and done < total:
            return False
        self._last = now
        self.event(asset, "working", done=done, total=total, note=note)
        return True


@dataclass
class ProgressView:
    """Turns events into lines for a terminal.

    costs: asset -> expected seconds on some machine; only their proportions matter once work has been
    done, because what is left is scaled by how long the finished work really took. (The first steps are short and
    say little, hence TRUST.)
    """

    costs: dict[str, float]
    every: float = 10.0
    finished: set[str] = field(default_factory=set)
    _started: dict[str, float] = field(default_factory=dict)
    _spent: float = 0.0
    _worked_off: float = 0.0
    _last_line: float = 0.0

    def line(self, event: dict[str, Any]) -> str | None:
        """The line to print for an event, or None when it is too soon after the last one."""
        asset, kind, now = event["asset"], event["kind"], event["time"]
        if asset not in self.costs:
            return None
        if kind == "started":
            self._started[asset] = now
            return None
        if kind == "working":
            return self._working_line(event)
        self.finished.add(asset)
        seconds = now - self._started.get(asset, now)
        if not event.get("cached"):
            self._spent += seconds
            self._worked_off += self.costs[asset]
        self._last_line = now
        how = "failed" if kind == "failed" else "unchanged" if event.get("cached") else f"{_clock(seconds)}"
        note = f" · {event['note']}" if event.get("note") else ""
        return f"{self._position()} {asset:<24} {how}{note} · {self._left(0.0)} left in all"

    def _working_line(self, event: dict[str, Any]) -> str | None:
        now, asset = event["time"], event["asset"]
        if now - self._last_line < self.every or event["total"] <= 0:
            return None
        self._last_line = now
        share = event["done"] / event["total"]
        spent = now - self._started.get(asset, now)
        step_left = spent / share - spent if share > 0 else self.costs[asset]
        note = f" · {event['note']}" if event["note"] else ""
        return (
            f"{self._position(1)} {asset:<24} {event['done']:,} of {event['total']:,}{note} · "
            f"{_clock(step_left)} left in this step, {self._left(share, asset, spent)} in all"
        )

    def _position(self, ahead: int = 0) -> str:
        return f"[{len(self.finished) + ahead:>2}/{len(self.costs)}]"

    def _left(self, share: float, running: str | None = None, spent: float = 0.0) -> str:
        waiting = sum(cost for asset, cost in self.costs.items() if asset not in self.finished)
        worked_off, seconds = self._worked_off, self._spent
        if running is not None:
            waiting -= share * self.costs[running]
            worked_off += share * self.costs[running]
            seconds += spent
        scale = (seconds + TRUST) / (worked_off + TRUST)
        return f"about {_clock(waiting * scale)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
