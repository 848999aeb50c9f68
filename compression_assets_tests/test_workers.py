"""How many processes work at once, and that none outlives its run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from compression_assets.errors import StudyError
from compression_assets.graph.assets.priority import leading, longest_ways, model_priorities
from compression_assets.machine.workers import workers
from compression_assets.planning.costs import expected_seconds
from compression_assets.study.files import load_study
from compression_assets_tests.project import Project, changed

WORKING = """
import multiprocessing, time
from compression_assets.machine.workers import die_with_the_run
def work():
    die_with_the_run()
    print("working", flush=True)
    time.sleep(60)
if __name__ == "__main__":
    child = multiprocessing.get_context("forkserver").Process(target=work)
    child.start()
    print(child.pid, flush=True)
    child.join()
"""


def test_workers_follow_the_machine_and_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPRESSION_WORKERS", raising=False)
    monkeypatch.setattr("compression_assets.machine.workers.cuda_devices", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert (workers().start, workers().count, workers().threads) == ("forkserver", 2, 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert (workers().start, workers().count, workers().threads) == ("in_process", 1, 1)
    monkeypatch.setattr("compression_assets.machine.workers.cuda_devices", lambda: 3)
    assert (workers().start, workers().count) == ("spawn", 3)
    monkeypatch.setenv("COMPRESSION_WORKERS", "1")
    assert (workers().start, workers().count) == ("spawn", 1)
    monkeypatch.setenv("COMPRESSION_WORKERS", "two")
    with pytest.raises(StudyError, match="COMPRESSION_WORKERS is 'two'"):
        workers()


def test_a_step_dies_with_its_run(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(WORKING)
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    lines = {run.stdout.readline().strip(), run.stdout.readline().strip()}
    (pid,) = (int(line) for line in lines - {"working"})
    run.kill()
    run.wait()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


def test_what_steps_are_forked_from_can_be_imported_and_starts_no_thread() -> None:
    # Its server swallows an ImportError, and every step would import torch for itself.
    code = "import threading, compression_assets.graph.preload; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1"


def test_the_longest_way_goes_first() -> None:
    study = load_study("demo")
    costs, ways = expected_seconds(study), longest_ways(study)
    assert ways["P", "KD", "Q"] == round(costs["final_p_kd_q"])
    assert ways["Q", "D"] > ways["Q", "D", "KD"] > ways["Q", "D", "KD", "P"]
    q_kd_p = ("final_q", "model_q_d", "model_q_d_kd", "model_q_d_kd_p", "final_q_kd_p")
    assert ways["Q",] == round(sum(costs[key] for key in q_kd_p))
    assert ways[()] >= max(ways.values()) > 0


def test_one_whole_ordering_goes_before_the_longest_way() -> None:
    study = load_study("demo")
    priorities = model_priorities(study)
    assert leading(study) == ("P", "KD", "Q")
    others = {
        path: priority for path, priority in priorities.items() if path != ("P", "KD", "Q")[: len(path)]
    }
    assert min(priorities["P",], priorities["P", "KD"], priorities["P", "KD", "Q"]) > max(others.values())
    assert others == {path: way for path, way in longest_ways(study).items() if path in others}


@pytest.mark.timeout(500)
def test_two_workers_make_a_study_that_one_finds_finished(tmp_path: Path) -> None:
    project = Project(tmp_path, orderings=["Q"], evaluation={"perplexity": {"batch_size": 8}})
    project.workers = "2"
    code, output = project.compression("run")
    assert code == 0, output
    made = project.versions()
    assert project.query("SELECT count(*) FROM leaderboard") == [(2,)]
    project.workers = "1"
    code, output = project.compression("run")
    assert code == 0, output
    assert changed(output) == set()
    assert project.versions() == made
