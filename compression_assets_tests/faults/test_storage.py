"""Storage that is full, read-only, or elsewhere than temporary files, and clocks that jump."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compression_assets_tests.faults.killing import Fault, made, results, run, small_project, temporary
from compression_assets_tests.project import Project

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

ORDERINGS = ["Q"]
SCRIPT = """
mount -t tmpfs -o size=3m none "$1" || exit 99
compression() {{ {python} -m compression_assets.cli "$@" 2>&1; echo "= exit $?"; }}
compression run
cp -a "$1" "$2/full"
mount -o remount,size=300m "$1"
compression run
cp -a "$1" "$2/roomy"
mount -o remount,ro "$1"
compression run
compression query "SELECT model FROM leaderboard ORDER BY ALL"
"""


def copied(storage: Path, folder: Path) -> Project:
    """A project whose storage is what a script has left there."""
    folder.mkdir()
    project = small_project(folder, ORDERINGS)
    shutil.rmtree(project.storage)
    shutil.copytree(storage, project.storage, copy_function=shutil.copy2)
    return project


def test_a_full_disk_and_a_read_only_one(tmp_path: Path) -> None:
    """A disk of 3 MiB fills in the middle of the study; it is then enlarged, and at last mounted read-only."""
    project = small_project(tmp_path, ORDERINGS)
    script = SCRIPT.format(python=sys.executable)
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, "bash", str(project.storage), str(tmp_path)],
        env={**project.environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount a small disk (unshare -rm)")
    full, roomy, read_only, query = done.stdout.split("= exit ")[:4]
    assert "No space left on device" in full
    assert "make room and run again, finished work is kept" in full
    assert roomy.startswith("1\n")
    assert read_only.startswith("0\n")
    assert query.startswith("1\n")
    assert "Traceback" not in done.stdout
    assert "mount it writable" in read_only or "make DAGSTER_HOME writable" in read_only
    assert query.split()[-2:] == ["base", "q"]
    before, after = copied(tmp_path / "full", tmp_path / "a"), copied(tmp_path / "roomy", tmp_path / "b")
    assert temporary(before) == temporary(after) == []
    finished = made(before)
    assert "models/base" in finished
    assert {name: made(after)[name] for name in finished} == finished


def test_clocks_that_jump_and_temporary_files_on_another_disk(tmp_path: Path) -> None:
    steady, jumping = (tmp_path / "steady"), (tmp_path / "jumping")
    expected = None
    for folder, fault in ((steady, None), (jumping, Fault(clock_jumps=True))):
        folder.mkdir()
        project = small_project(folder, ORDERINGS)
        assert run(project, fault, TMPDIR="/dev/shm") == 0, (project.storage / "log.txt").read_text()
        assert Path("/dev/shm").stat().st_dev != project.storage.stat().st_dev
        expected = expected or results(project)
        assert results(project) == expected
        assert temporary(project) == []
    before = made(project)
    for file in project.root.rglob("*.safetensors"):
        file.touch()
    assert run(project) == 0
    assert made(project) == before
