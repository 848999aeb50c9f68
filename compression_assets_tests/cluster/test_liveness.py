"""Which processes are alive, as every host sees it, and their progress."""

import multiprocessing
import signal
import time
from pathlib import Path

import pytest

from compression_assets.machine import liveness
from compression_assets.machine.liveness import alive, is_alive
from compression_assets.machine.shared_progress import ProgressRows, SharedProgressLog

pytestmark = pytest.mark.cluster
PROCESSES = multiprocessing.get_context("spawn")


def hold(name: str) -> None:
    with alive(name):
        time.sleep(60)


def cut_off(seconds: float) -> None:
    liveness.CUT_OFF = seconds
    liveness.connect = unreachable  # type: ignore[assignment]
    liveness.die_when_cut_off()
    time.sleep(30)


def unreachable(name: str) -> None:
    raise liveness.StudyError("no network")


def until(wanted: bool, name: str) -> None:
    deadline = time.monotonic() + 30
    while is_alive(name) is not wanted:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_process_is_alive_until_it_is_killed(cluster: dict[str, str]) -> None:
    process = PROCESSES.Process(target=hold, args=("a driver",))
    process.start()
    until(True, "a driver")
    assert not is_alive("another driver")
    process.kill()
    process.join()
    until(False, "a driver")


def test_who_ends_is_not_alive(cluster: dict[str, str]) -> None:
    with alive("one"):
        assert is_alive("one")
    assert not is_alive("one")


def test_a_lost_session_is_taken_up_again(cluster: dict[str, str]) -> None:
    from compression_assets.machine.shared_locks import connect

    with alive("steady"), connect("a test").cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'steady'"
        )
        until(False, "steady")
        until(True, "steady")


def test_a_step_that_is_cut_off_ends() -> None:
    process = PROCESSES.Process(target=cut_off, args=(1.0,))
    process.start()
    process.join(25)
    assert process.exitcode == -signal.SIGKILL


def test_progress_reaches_other_hosts(cluster: dict[str, str], tmp_path: Path) -> None:
    before = SharedProgressLog(tmp_path / "unused", "progress_test")
    rows = ProgressRows("progress_test")
    before.event("base_model", "started")
    before.event("base_model", "finished", cached=False)
    assert [(one["asset"], one["kind"]) for one in rows.new()] == [
        ("base_model", "started"),
        ("base_model", "finished"),
    ]
    assert not list(rows.new())
    assert not (tmp_path / "unused").exists()
    assert not list(ProgressRows("progress_test").new())  # what was before is none of its run


def test_a_step_goes_on_when_its_progress_cannot_be_shown(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("COMPRESSION_PG", "postgresql://nobody@127.0.0.1:9/none")
    SharedProgressLog(tmp_path / "unused", "progress_test").event("base_model", "started")
    assert "progress is not shown" in caplog.text
