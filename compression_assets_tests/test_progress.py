"""Progress lines: positions and the time left, from events with made-up clocks."""

import json
from pathlib import Path
from typing import Any

from compression_assets.machine.progress import ProgressLog, ProgressView


def event(asset: str, kind: str, time: float, **fields: Any) -> dict[str, Any]:
    return {"asset": asset, "kind": kind, "time": time, **fields}


def view() -> ProgressView:
    return ProgressView({"a": 10.0, "b": 30.0, "c": 60.0})


def test_time_left_is_scaled_by_how_long_finished_work_took() -> None:
    shown = view()
    assert shown.line(event("a", "started", 0.0)) is None
    line = shown.line(event("a", "finished", 20.0, cached=False, note=""))
    # a was expected to take 10 s and took 20: with TRUST = 60 the 90 s of b and c become 90 * (20 + 60) / (10 + 60).
    assert line is not None
    assert line.startswith("[ 1/3] a")
    assert line.endswith("0:20 · about 1:43 left in all")


def test_before_anything_is_finished_steps_at_once_share_the_time() -> None:
    log = ProgressView({"a": 10.0, "b": 30.0, "c": 60.0}, at_once=2)
    log.line({"asset": "a", "kind": "started", "time": 0.0})
    line = log.line({"asset": "a", "kind": "finished", "time": 10.0})
    # 90 s are left of costs; 60 s of two at once and 10 s of one alone have been 40 s for 70.
    assert line is not None and line.endswith("about 0:51 left in all")


def test_unchanged_steps_do_not_make_the_rest_look_fast() -> None:
    shown = view()
    shown.line(event("a", "started", 0.0))
    line = shown.line(event("a", "finished", 0.1, cached=True, note=""))
    assert line is not None
    assert "unchanged" in line
    assert line.endswith("about 1:30 left in all")


def test_a_working_step_tells_how_far_it_is_and_counts_what_it_has_done() -> None:
    shown = view()
    shown.line(event("b", "started", 100.0))
    line = shown.line(event("b", "working", 115.0, done=500, total=1000, note="loss 3.21"))
    # Half of b took 15 s as expected: 15 s of b are left, and a and c with it: 85 s.
    assert line is not None
    assert "500 of 1,000 · loss 3.21" in line
    assert "0:15 left in this step" in line
    assert "about 1:25 in all" in line
    assert shown.line(event("b", "working", 116.0, done=510, total=1000, note="")) is None


def test_steps_that_overlap_count_their_common_time_once() -> None:
    shown = view()
    shown.line(event("a", "started", 0.0))
    shown.line(event("b", "started", 0.0))
    shown.line(event("a", "finished", 10.0, cached=False, note=""))
    line = shown.line(event("b", "finished", 20.0, cached=False, note=""))
    # 40 s of expected work took 20 s, since two steps ran at once: c's 60 become 60 * (20 + 60) / (40 + 60).
    assert line is not None
    assert line.startswith("[ 2/3] b")
    assert line.endswith("0:20 · about 0:48 left in all")


def test_assets_outside_the_run_are_ignored() -> None:
    assert view().line(event("other", "finished", 1.0, cached=False)) is None


def test_the_log_keeps_the_last_report_of_a_step(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path / "progress" / "run.jsonl")
    for done in range(101):
        log.working("a", done, 100, "")
    events = [json.loads(line) for line in log.file.read_text().splitlines()]
    assert events[-1]["done"] == 100
    assert len(events) < 10


def test_a_run_takes_no_less_than_the_step_at_work() -> None:
    log = ProgressView({"a": 0.5})
    log.line({"asset": "a", "kind": "started", "time": 0.0})
    line = log.line({"asset": "a", "kind": "working", "time": 60.0, "done": 1, "total": 3, "note": ""})
    assert line is not None and line.endswith("2:00 left in this step, about 2:00 in all")
