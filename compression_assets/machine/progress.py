"""How far a run is: steps append events to a file, whoever watches the run reads them.

A file works for steps in the same process and in processes of their own alike; for other hosts: `shared_progress`.
"""

import json
import time
from collections.abc import Iterator
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
        self.append(json.dumps({"asset": asset, "kind": kind, "time": time.time(), **fields}))

    def append(self, line: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
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


class ProgressFiles:
    """The events that runs append to the files of a folder from now on."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._read = {file: file.stat().st_size for file in folder.glob("*.jsonl")}

    def new(self) -> Iterator[dict[str, Any]]:
        """Those since the last call."""
        for file in sorted(self._folder.glob("*.jsonl")):
            with file.open("rb") as handle:
                handle.seek(self._read.get(file, 0))
                complete, newline, _ = handle.read().rpartition(b"\n")
            self._read[file] = self._read.get(file, 0) + len(complete) + len(newline)
            yield from map(json.loads, complete.splitlines())


@dataclass
class _Running:
    """A step at work: when it began, and how much of it is done (0 to 1)."""

    started: float
    share: float = 0.0


@dataclass
class ProgressView:
    """Turns events into lines for a terminal. Several steps may be at work at once.

    costs: asset -> expected seconds on some machine; only their proportions matter once work has been
    done, because what is left is scaled by how long the finished work really took: the run's own time, in which
    steps overlap, without that of steps found unchanged. (The first steps are short and say little, hence TRUST.)
    at_once: steps that work at the same time.
    """

    costs: dict[str, float]
    at_once: int = 1
    every: float = 10.0
    finished: set[str] = field(default_factory=set)
    _running: dict[str, _Running] = field(default_factory=dict)
    _worked_off: float = 0.0
    _busy: float = 0.0
    _busy_until: float = 0.0
    _last_line: float = 0.0

    def line(self, event: dict[str, Any]) -> str | None:
        """The line to print for an event, or None when it is too soon after the last one."""
        asset, kind, now = event["asset"], event["kind"], event["time"]
        if asset not in self.costs:
            return None
        if kind == "started":
            self._running[asset] = _Running(now)
            return None
        step = self._running.setdefault(asset, _Running(now))
        if kind == "working":
            return self._working_line(event, step)
        self.finished.add(asset)
        del self._running[asset]
        if not event.get("cached"):
            self._was_busy(step.started, now)
            self._worked_off += self.costs[asset]
        self._last_line = now
        how = (
            "failed"
            if kind == "failed"
            else "unchanged"
            if event.get("cached")
            else _clock(now - step.started)
        )
        note = f" · {event['note']}" if event.get("note") else ""
        return f"{self._position()} {asset:<24} {how}{note} · {self._left()} left in all"

    def _working_line(self, event: dict[str, Any], step: "_Running") -> str | None:
        now, asset = event["time"], event["asset"]
        if event["total"] > 0:
            step.share = event["done"] / event["total"]
            self._was_busy(step.started, now)
        if now - self._last_line < self.every or event["total"] <= 0:
            return None
        self._last_line = now
        spent = now - step.started
        step_left = spent / step.share - spent if step.share > 0 else self.costs[asset]
        note = f" · {event['note']}" if event["note"] else ""
        return (
            f"{self._position(1)} {asset:<24} {event['done']:,} of {event['total']:,}{note} · "
            f"{_clock(step_left)} left in this step, {self._left(step_left)} in all"
        )

    def _was_busy(self, start: float, end: float) -> None:
        self._busy += max(0.0, end - max(start, self._busy_until))
        self._busy_until = max(self._busy_until, end)

    def _position(self, ahead: int = 0) -> str:
        return f"[{len(self.finished) + ahead:>2}/{len(self.costs)}]"

    def _left(self, at_least: float = 0.0) -> str:
        part = sum(step.share * self.costs[asset] for asset, step in self._running.items())
        waiting = sum(cost for asset, cost in self.costs.items() if asset not in self.finished) - part
        scale = (self._busy + TRUST / self.at_once) / (self._worked_off + part + TRUST)
        return f"about {_clock(max(waiting * scale, at_least))}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
