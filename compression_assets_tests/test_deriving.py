"""Many processes and one database: steps that finish at once, readers that stay, and processes that die."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

from compression_assets.machine.locks import try_lock
from compression_assets.reporting.database import database_of, refresh
from compression_assets.store.tables import write_table
from compression_assets.study.model import Study
from compression_assets_tests.measured_study import measure, row, small_study

MEASURER = """
import sys
from pathlib import Path
from compression_assets.reporting.database import refresh
from compression_assets.study.files import load_study
from compression_assets_tests.measured_study import measure, row
study, root = load_study(sys.argv[1]), Path(sys.argv[2])
for key in sys.argv[3:]:
    measure(root, f"metrics_{key}", [row("perplexity", 2.0)])
    print(refresh(study, root))
"""

READER = """
import sys, time, duckdb
seen = []
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    with duckdb.connect(sys.argv[1], read_only=True) as db:
        seen.append(db.execute("SELECT (SELECT count(*) FROM leaderboard), (SELECT count(*) FROM models)").fetchone())
assert all(one == other for one, other in seen), seen
print(len(seen))
"""

HOLDER = """
import sys, duckdb
db = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
print("open", flush=True)
input()
print(db.execute("SELECT count(*) FROM leaderboard").fetchone()[0], flush=True)
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from compression_assets.reporting import database
from compression_assets.store import metrics_db
from compression_assets.study.files import load_study
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def late(replace=os.replace):
    def both(source, target):
        replace(source, target)
        if str(target).endswith(".duckdb"):
            die()
    return both
def early(replace=os.replace):
    return lambda source, target: die() if str(target).endswith(".duckdb") else replace(source, target)
study, root, when = sys.argv[1:]
if when == "filling":
    database.create_views = die
else:
    metrics_db.os.replace = early() if when == "before the rename" else late()
database.refresh(load_study(study), Path(root))
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return small_study(tmp_path, "P", "Q", "P-Q", "KD", "Q-P", "P-KD")


@pytest.fixture
def root(tmp_path: Path, study: Study) -> Path:
    """One measured model, in the database."""
    root = tmp_path / "study"
    measure(root, "metrics_base", [row("perplexity", 3.0)])
    assert refresh(study, root) == ""
    return root


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def held_open(file: Path, how: str) -> Iterator["subprocess.Popen[str]"]:
    with start(HOLDER, file, how) as process:
        assert process.stdout and process.stdout.readline() == "open\n"
        yield process
        if process.poll() is None:
            process.communicate("\n")


def models(root: Path) -> list[str]:
    return [str(model) for (model,) in database_of(root).query("SELECT model FROM leaderboard")[1]]


def test_every_step_of_several_processes_is_in_the_database_when_the_last_one_ends(
    tmp_path: Path, study: Study, root: Path
) -> None:
    reader = start(READER, database_of(root).file, 4)
    steps = [
        start(MEASURER, tmp_path / "small.yaml", root, *keys)
        for keys in (("p", "q"), ("p_q", "kd"), ("q_p", "p_kd"))
    ]
    for process in steps:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    # Nobody refreshes here: whoever had the lock has looked again after giving it back.
    assert models(root) == ["base", "p", "q", "p_q", "kd", "q_p", "p_kd"]
    output, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors
    assert int(output) > 3


def test_whoever_does_not_get_the_lock_goes_on_at_once(study: Study, root: Path) -> None:
    measure(root, "metrics_p", [row("perplexity", 4.0)])
    lock = try_lock(root / ".locks" / "database", "another one")
    assert lock is not None
    with lock:
        started = time.monotonic()
        assert "another process derives it" in refresh(study, root)
        assert time.monotonic() - started < 2
        assert models(root) == ["base"]
    assert refresh(study, root) == ""
    assert models(root) == ["base", "p"]


def test_nothing_is_derived_when_nothing_has_changed(study: Study, root: Path) -> None:
    write_table(root, "steps", [{"step": "p", "value": 0.5}])
    assert refresh(study, root) == ""
    before = database_of(root).file.stat()
    write_table(root, "steps", [{"step": "p", "value": 0.5}])
    assert refresh(study, root) == ""
    assert database_of(root).file.stat().st_ino == before.st_ino
    measure(root, "metrics_base", [row("perplexity", 3.0)])
    assert refresh(study, root) == ""
    assert database_of(root).file.stat().st_ino != before.st_ino


def test_a_shell_that_only_reads_holds_nobody_up_and_keeps_what_it_opened(study: Study, root: Path) -> None:
    with held_open(database_of(root).file, "read") as shell:
        measure(root, "metrics_p", [row("perplexity", 4.0)])
        assert refresh(study, root) == ""
        assert models(root) == ["base", "p"]
        assert shell.communicate("\n")[0] == "1\n"


def test_behind_a_shell_that_writes_nobody_fails_and_nothing_is_lost(study: Study, root: Path) -> None:
    with held_open(database_of(root).file, "write") as shell:
        measure(root, "metrics_p", [row("perplexity", 4.0)])
        started = time.monotonic()
        assert str(shell.pid) in refresh(study, root)
        assert time.monotonic() - started < 2
    assert refresh(study, root) == ""
    assert models(root) == ["base", "p"]


@pytest.mark.parametrize("when", ["filling", "before the rename", "after the rename"])
def test_a_process_killed_while_it_derives_costs_nothing(
    tmp_path: Path, study: Study, root: Path, when: str
) -> None:
    measure(root, "metrics_p", [row("perplexity", 4.0)])
    process = start(KILLED, tmp_path / "small.yaml", root, when)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with duckdb.connect(str(database_of(root).file), read_only=True) as db:
        seen = db.execute("SELECT count(*) FROM leaderboard").fetchall()[0][0]
    assert seen == (2 if when == "after the rename" else 1)
    measure(root, "metrics_q", [row("perplexity", 5.0)])
    assert refresh(study, root) == ""
    assert models(root) == ["base", "p", "q"]
    assert {path.name for path in root.iterdir()} == {
        ".locks",
        ".times",
        "compression.duckdb",
        "intervals",
        "metrics",
    }


def test_what_a_killed_shell_wrote_is_not_mixed_with_what_is_derived(study: Study, root: Path) -> None:
    script = (
        "import duckdb, os, signal, sys; db = duckdb.connect(sys.argv[1]); "
        "db.execute(\"INSERT INTO models VALUES ('shell', 'shell', 1, '')\"); os.kill(os.getpid(), signal.SIGKILL)"
    )
    start(script, database_of(root).file).communicate(timeout=60)
    log = database_of(root).file.with_name("compression.duckdb.wal")
    assert log.exists()
    assert refresh(study, root) == ""
    assert not log.exists()
    assert database_of(root).query("SELECT model FROM models")[1] == [("base",)]


def test_a_link_to_a_database_elsewhere_stays_a_link(tmp_path: Path, study: Study) -> None:
    root = tmp_path / "linked"
    (tmp_path / "elsewhere").mkdir()
    for key in ("base", "p"):
        measure(root, f"metrics_{key}", [row("perplexity", 4.0)])
        if key == "base":
            database_of(root).file.symlink_to(tmp_path / "elsewhere" / "real.duckdb")
        assert refresh(study, root) == ""
    assert database_of(root).file.is_symlink()
    assert models(root) == ["base", "p"]
