"""A small study that a driver on this machine runs on simulated hosts."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from compression_assets.machine.shared_locks import lock_number
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets_tests.faults.killing import small_project
from compression_assets_tests.project import Project
from compression_assets_tests.simulated_hosts import Hosts

STEP = "final_p"
SELECTION = f"*{STEP}"
COMPRESSION = (sys.executable, "-m", "compression_assets.cli")
EPOCHS = 300
"""Enough for a step to be hit while it works."""
LOCKS = """
SELECT classid::bigint << 32 | objid::bigint, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1
"""


class Study(Project):
    """A small study of a name of its own, with one step that takes a while. environment of its driver: `extra`."""

    def __init__(self, folder: Path, name: str, hosts: Hosts | None = None):
        self.name = name
        self.runs: list[subprocess.Popen[str]] = []
        self.extra = dict(hosts.environment) if hosts else {}
        if hosts:
            self.extra["COMPRESSION_STORE"] += f"/{name}"
        folder.mkdir(exist_ok=True)
        small = small_project(folder, ["P"])
        super().__init__(folder)
        study = small.read()
        study["techniques"]["P"]["finetune"]["epochs"] = EPOCHS
        self.root = self.storage / name
        self.write({**study, "name": name})

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.extra}

    def run(self) -> "subprocess.Popen[str]":
        self.runs.append(self.start(*COMPRESSION, "run", "--select", SELECTION))
        return self.runs[-1]

    def end(self) -> None:
        """Kill the drivers that a failed test has left."""
        for run in self.runs:
            run.kill()
            run.wait()

    def made_versions(self) -> dict[str, str]:
        before = dict(os.environ)
        os.environ.update(self.extra)
        try:
            store = artifacts_of(self.root)
            found = {folder: store.manifest(folder, folder.name) for folder in store.directories()}
        finally:
            os.environ.clear()
            os.environ.update(before)
        return {folder.name: made.data_version for folder, made in found.items() if made}

    def events(self) -> list[dict[str, object]]:
        """What all runs reported on their way."""
        table = f"compression_{self.name}.progress"
        if self.ask("SELECT to_regclass(%s)", table) == [(None,)]:
            return []
        return [json.loads(event) for (event,) in self.ask(f"SELECT event FROM {table} ORDER BY id")]

    def wait_until_it_trains(self, run: "subprocess.Popen[str]", within: float = 600.0) -> None:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if any(
                one["asset"] == STEP and one["kind"] == "working" and "loss" in str(one["note"])
                for one in self.events()
            ):
                return
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.3)
        raise TimeoutError(f"{STEP} does not begin to train")

    def wait_until_it_uploads(self, run: "subprocess.Popen[str]", within: float = 600.0) -> None:
        """Until a step has all it made and sends it: it holds the lock against sweeping of what it sends."""
        lock = lock_number(f"{self.extra['COMPRESSION_STORE']}/{self.name}/blobs")
        deadline = time.monotonic() + within
        while not any(held == lock for held, _ in self.locks()):
            assert run.poll() is None, run.communicate()[0]
            if time.monotonic() > deadline:
                raise TimeoutError("no step sends what it made")
            time.sleep(0.1)

    def locks(self) -> list[tuple[int, str]]:
        """(number, holder) of every lock that somebody holds."""
        return [
            (number, holder)
            for number, holder in self.ask(LOCKS)
            if str(holder).startswith(("final", "base"))
        ]

    def ask(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        import psycopg2

        with closing(psycopg2.connect(self.extra["COMPRESSION_PG"])) as session, session.cursor() as cursor:
            cursor.execute(sql, values)
            return list(cursor.fetchall())

    def made(self) -> Counter[str]:
        """Asset -> how many times it was made, not found."""
        return Counter(
            str(one["asset"]) for one in self.events() if one["kind"] == "finished" and not one["cached"]
        )
