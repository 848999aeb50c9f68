"""Runs that are killed at seeded moments: the study comes to what an undisturbed run makes, and nothing is lost.

A round kills the same study up to five times in a row, so that recovering is interrupted too, then lets it finish.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from compression_assets_tests.faults.killing import (
    Fault,
    made,
    operations,
    results,
    run,
    small_project,
    temporary,
)
from compression_assets_tests.project import Project

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("COMPRESSION_TEST_KILLS", "30"))
KILLS_IN_A_ROUND = 5
TIMED = 3
"""One kill in so many comes after a time, in the middle of computing; the others at a change of a file."""

ORDERINGS = ["P-KD-Q"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = small_project(tmp_path_factory.mktemp("undisturbed"), ORDERINGS)
    assert run(project) == 0, (project.storage / "log.txt").read_text()
    return project


def test_a_study_that_is_killed_again_and_again_comes_to_the_same(
    undisturbed: Project, tmp_path: Path
) -> None:
    chance = random.Random(20_251_119)
    changes = operations(undisturbed)
    expected = results(undisturbed)
    done = rounds = 0
    while done < KILLS:
        folder = tmp_path / f"round_{rounds}"
        folder.mkdir()
        project = small_project(folder, ORDERINGS)
        done += _kill_and_finish(project, chance, changes, min(KILLS_IN_A_ROUND, KILLS - done), done)
        assert results(project) == expected, rounds
        assert temporary(project) == []
        shutil.rmtree(folder)
        rounds += 1


def _kill_and_finish(project: Project, chance: random.Random, changes: int, kills: int, before: int) -> int:
    """Kill runs of a new study up to `kills` times, then let one finish; how many really died."""
    finished: dict[str, tuple[str, int]] = {}
    died = 0
    for kill in range(kills):
        fault = Fault(operation=chance.randrange(1, changes if kill == 0 else changes // 2))
        if (before + kill) % TIMED == TIMED - 1:
            fault = Fault(seconds=chance.uniform(0.0, 3.0))
        code = run(project, fault)
        assert code in (0, -signal.SIGKILL), (fault, (project.storage / "log.txt").read_text())
        _expect_kept(project, finished)
        finished = made(project)
        if code == 0:
            break
        died += 1
    assert run(project) == 0, (project.storage / "log.txt").read_text()
    _expect_kept(project, finished)
    return died


def _expect_kept(project: Project, finished: dict[str, tuple[str, int]]) -> None:
    """Nothing that was finished before has been made again."""
    now = made(project)
    assert {name: now.get(name) for name in finished} == finished


def test_two_workers_that_are_killed_leave_nobody_behind(undisturbed: Project, tmp_path: Path) -> None:
    """The command itself dies, while two steps are at work in processes of their own."""
    project = small_project(tmp_path, ORDERINGS)
    project.workers = "2"
    for models in (2, 4):
        command = project.start(sys.executable, "-m", "compression_assets.cli", "run")
        deadline = time.monotonic() + 240
        while len(list((project.root / "models").glob("[a-z]*"))) < models and time.monotonic() < deadline:
            time.sleep(0.05)
        command.send_signal(signal.SIGKILL)
        # Returns once every process that writes to the command's output is gone.
        command.communicate(timeout=60)
    finished = made(project)
    assert len([name for name in finished if name.startswith("models/")]) >= 4
    assert run(project) == 0, (project.storage / "log.txt").read_text()
    _expect_kept(project, finished)
    assert results(project) == results(undisturbed)
    assert temporary(project) == []
