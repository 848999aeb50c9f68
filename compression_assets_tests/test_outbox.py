"""Many processes and one database: writers at once, readers that stay, and processes that die."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.store.outbox import Outbox

WRITER = """
import sys
from pathlib import Path
from compression_assets.store.metrics_db import MetricsDatabase
database = MetricsDatabase(Path(sys.argv[1]), patience=float(sys.argv[4]))
for number in range(int(sys.argv[3])):
    database.write_table("arrivals", [{"writer": sys.argv[2], "number": number}], ["writer", "number"])
"""

READER = """
import sys, time, duckdb
reads = 0
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    with duckdb.connect(sys.argv[1], read_only=True) as db:
        db.execute("SELECT count(*) FROM arrivals").fetchall()
    reads += 1
print(reads)
"""

HOLDER = """
import sys, duckdb
db = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
print("open", flush=True)
input()
print(db.execute("SELECT count(*) FROM arrivals").fetchone()[0], flush=True)
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from compression_assets.store import metrics_db
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def late(replace=os.replace):
    def both(*arguments):
        replace(*arguments)
        die()
    return both
target, when = sys.argv[1:3]
if when == "applying":
    apply = metrics_db.metrics_writes.apply
    metrics_db.metrics_writes.apply = lambda db, write: (apply(db, write), die())
elif when == "before the rename":
    metrics_db.os.replace = die
else:
    metrics_db.os.replace = late()
database = metrics_db.MetricsDatabase(Path(target))
database.write_table("arrivals", [{"writer": "killed", "number": 1}], ["writer", "number"])
"""


@pytest.fixture
def database(tmp_path: Path) -> MetricsDatabase:
    made = MetricsDatabase(tmp_path / "compression.duckdb", patience=2.0)
    arrive(made, "first", 0)
    return made


def arrive(database: MetricsDatabase, writer: str, number: int) -> Any:
    return database.write_table("arrivals", [{"writer": writer, "number": number}], ["writer", "number"])


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def held_open(database: MetricsDatabase, how: str) -> Iterator["subprocess.Popen[str]"]:
    with start(HOLDER, database.file, how) as process:
        assert process.stdout and process.stdout.readline() == "open\n"
        yield process
        if process.poll() is None:
            process.communicate("\n")


def count(database: MetricsDatabase) -> int:
    found: int = database.query("SELECT count(*) FROM arrivals")[1][0][0]
    return found


def test_every_write_of_several_processes_arrives_once_beside_a_reader_in_a_loop(
    database: MetricsDatabase,
) -> None:
    reader = start(READER, database.file, 3)
    writers = [start(WRITER, database.file, f"w{index}", 8, 0.2) for index in range(3)]
    for process in writers:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    output, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors
    assert int(output) > 3
    database.merge()  # what writers left because others were merging
    assert database.outbox.waiting() == []
    assert count(database) == 1 + 3 * 8
    assert database.query("SELECT count(*), count(DISTINCT id) FROM applied_writes")[1] == [(25, 25)]


def test_a_shell_that_only_reads_holds_nobody_up_and_keeps_what_it_opened(database: MetricsDatabase) -> None:
    with held_open(database, "read") as shell:
        merged = arrive(database, "second", 1)
        assert (merged.applied, merged.waiting) == (1, 0)
        assert count(database) == 2
        assert shell.communicate("\n")[0] == "1\n"


def test_behind_a_shell_that_writes_writes_wait_and_nobody_fails(database: MetricsDatabase) -> None:
    impatient = MetricsDatabase(database.file, patience=0.3)
    with held_open(database, "write") as shell:
        started = time.monotonic()
        first = arrive(impatient, "second", 1)
        assert time.monotonic() - started < 2
        assert (first.applied, first.waiting) == (0, 1)
        assert str(shell.pid) in first.why
        assert arrive(impatient, "second", 2).waiting == 2
    merged = impatient.merge()
    assert (merged.applied, merged.waiting) == (2, 0)
    assert count(database) == 3


@pytest.mark.parametrize("when", ["applying", "before the rename", "after the rename"])
def test_a_process_killed_while_it_merges_costs_nothing(database: MetricsDatabase, when: str) -> None:
    process = start(KILLED, database.file, when)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    with duckdb.connect(str(database.file), read_only=True) as db:
        seen = db.execute("SELECT count(*) FROM arrivals").fetchall()[0][0]
    assert seen == (2 if when == "after the rename" else 1)
    assert len(database.outbox.waiting()) == 1
    arrive(database, "next", 1)
    found = database.query("SELECT writer FROM arrivals ORDER BY writer")[1]
    assert found == [("first",), ("killed",), ("next",)]
    assert database.query("SELECT count(*) FROM applied_writes")[1] == [(3,)]
    left = {path.name for path in database.file.parent.rglob("*")}
    assert left == {"compression.duckdb", "outbox", "names.lock", "merge.lock"}


def test_a_shell_killed_with_a_log_beside_the_file_loses_nothing(database: MetricsDatabase) -> None:
    script = (
        "import duckdb, os, signal, sys; db = duckdb.connect(sys.argv[1]); "
        "db.execute(\"INSERT INTO arrivals VALUES ('shell', 1)\"); os.kill(os.getpid(), signal.SIGKILL)"
    )
    start(script, database.file).communicate(timeout=60)
    assert database.file.with_name("compression.duckdb.wal").exists()
    arrive(database, "next", 1)
    found = database.query("SELECT writer FROM arrivals ORDER BY writer")[1]
    assert found == [("first",), ("next",), ("shell",)]


def test_writes_keep_their_order_when_the_clock_jumps_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path)
    clock = iter([5_000, 1_000, 6_000])
    monkeypatch.setattr("compression_assets.store.outbox.time.time_ns", lambda: next(clock))
    for number in range(3):
        outbox.put({"number": number})
    assert [entry.read()["number"] for entry in outbox.waiting()] == [0, 1, 2]


def test_a_link_to_a_database_elsewhere_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "compression.duckdb"
    link.symlink_to(tmp_path / "elsewhere" / "real.duckdb")
    database = MetricsDatabase(link)
    arrive(database, "first", 0)
    arrive(database, "second", 1)
    assert link.is_symlink()
    assert count(database) == 2
