"""Runs whose process was killed: told from those at work, and ended so that nothing waits for them."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.events import DagsterEvent
from dagster._core.launcher import WorkerStatus

from compression_assets.graph.launcher import WatchedRunLauncher, close_abandoned_runs
from compression_assets.study.files import load_study
from compression_assets.study.places import EARLIER_TEMPLATES, dagster_home

TEMPLATE = Path(__file__).parents[1] / "storage" / "dagster.yaml"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance made from the committed template."""
    (tmp_path / "dagster.yaml").write_text(TEMPLATE.read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def started(instance: dg.DagsterInstance, process: int) -> str:
    """A run that a process of this number has begun, with a slot of the pool "gpu"."""

    @dg.job
    def nothing() -> None:
        pass

    run = instance.create_run_for_job(nothing)
    event = DagsterEvent("PIPELINE_START", "nothing", pid=process)
    instance.report_dagster_event(event, run.run_id)
    instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
    instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "step")
    return run.run_id


def dead_process() -> int:
    script = "import os; print(os.getpid())"
    return int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout)


def other_program() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["sleep", "60"])


def test_a_killed_run_is_noticed_and_its_slot_freed(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.run_launcher, WatchedRunLauncher)
    assert instance.run_launcher.supports_check_run_worker_health
    alive, dead = started(instance, os.getpid()), started(instance, dead_process())
    health = {
        run_id: instance.run_launcher.check_run_worker_health(run)
        for run_id in (alive, dead)
        if (run := instance.get_run_by_id(run_id))
    }
    assert health[alive].status == WorkerStatus.RUNNING
    assert health[dead].status == WorkerStatus.FAILED
    assert "is gone" in str(health[dead].msg)
    assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 2
    close_abandoned_runs(instance)
    ended = instance.get_run_by_id(dead)
    working = instance.get_run_by_id(alive)
    assert ended and ended.status == dg.DagsterRunStatus.FAILURE
    assert working and working.status == dg.DagsterRunStatus.STARTED
    assert instance.event_log_storage.get_concurrency_info("gpu").active_run_ids == {alive}


def test_a_slot_that_a_failed_run_has_left_is_freed(instance: dg.DagsterInstance) -> None:
    """Of a step whose process died: every later run would wait for it, for ever."""
    failed = instance.get_run_by_id(started(instance, os.getpid()))
    assert failed is not None
    instance.report_run_failed(failed)
    assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 1
    close_abandoned_runs(instance)
    assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0


def test_a_number_that_another_program_has_now_is_no_run(instance: dg.DagsterInstance) -> None:
    program = other_program()
    try:
        run = instance.get_run_by_id(started(instance, program.pid))
        assert run is not None
        assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED
    finally:
        program.kill()
        program.wait()


def test_the_template_limits_the_pool_and_watches_runs() -> None:
    settings = yaml.safe_load(TEMPLATE.read_text())
    assert settings["concurrency"]["pools"] == {"granularity": "op", "default_limit": 2}
    assert settings["run_monitoring"]["enabled"] is True
    assert settings["run_monitoring"]["free_slots_after_run_end_seconds"] == 30


def test_a_home_of_an_earlier_template_is_brought_up_to_date_unless_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESSION_STORAGE", str(tmp_path))
    study = load_study("smoke")
    config = dagster_home(study) / "dagster.yaml"
    assert config.read_text() == TEMPLATE.read_text()
    config.write_text("# mine\n")
    assert dagster_home(study) == config.parent
    assert config.read_text() == "# mine\n"
    monkeypatch.setattr(
        "compression_assets.study.places.EARLIER_TEMPLATES", {*EARLIER_TEMPLATES, sha256("# mine\n")}
    )
    dagster_home(study)
    assert config.read_text() == TEMPLATE.read_text()


def sha256(text: str) -> str:

    return hashlib.sha256(text.encode()).hexdigest()
