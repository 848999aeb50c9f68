"""What becomes of a study on Ray when processes, hosts and servers are lost under it, on simulated hosts.

After each fault the models are those of an undisturbed run on one machine, byte for byte, and nothing was made twice.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets_tests.faults.killing import small_project
from compression_assets_tests.project import Project
from compression_assets_tests.ray_servers import ray_missing
from compression_assets_tests.simulated_hosts import Hosts, namespaces_missing, simulated_hosts, stopped

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

STEP = "final_p"
RUN = (sys.executable, "-m", "compression_assets.cli", "run", "--select", f"*{STEP}")
EPOCHS = 40
"""Enough for a step to be hit while it works."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if missing := ray_missing() or namespaces_missing():
        pytest.skip(missing)
    with simulated_hosts() as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directory -> data version, made on one machine."""
    study = Study(tmp_path_factory.mktemp("undisturbed"), "undisturbed")
    code, output = study.compression("run", "--select", f"*{STEP}", OMP_NUM_THREADS="1")
    assert code == 0, output
    return study.made_versions()


class Study(Project):
    """A small study of a name of its own, with one step that takes a while. environment of its driver: `extra`."""

    def __init__(self, folder: Path, name: str, hosts: Hosts | None = None):
        self.name = name
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
        return self.start(*RUN)

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
        import psycopg2

        with closing(psycopg2.connect(self.extra["COMPRESSION_PG"])) as session, session.cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s)", (f"compression_{self.name}.progress",))
            if cursor.fetchone()[0] is None:
                return []
            cursor.execute(f"SELECT event FROM compression_{self.name}.progress ORDER BY id")
            return [json.loads(event) for (event,) in cursor.fetchall()]

    def wait_until_it_trains(self, done: int = 2, within: float = 240.0) -> None:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if any(
                one["asset"] == STEP and one["kind"] == "working" and "loss" in str(one["note"])
                for one in self.events()
            ):
                return
            time.sleep(0.3)
        raise TimeoutError(f"{STEP} does not begin to train")

    def made(self) -> Counter[str]:
        """Asset -> how many times it was made, not found."""
        return Counter(
            str(one["asset"]) for one in self.events() if one["kind"] == "finished" and not one["cached"]
        )


@pytest.fixture
def study(hosts: Hosts, tmp_path: Path, request: pytest.FixtureRequest) -> Study:
    return Study(tmp_path / "driver", request.node.name.removeprefix("test_")[:31], hosts)


def ends_well(run: "subprocess.Popen[str]") -> str:
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    return output


def check(study: Study, undisturbed: dict[str, str]) -> None:
    assert study.made_versions() == undisturbed
    assert set(study.made().values()) == {1}, study.made()


def test_a_killed_step(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains()
    for process in hosts.running(STEP).step_processes(STEP):
        os.kill(process, signal.SIGKILL)
    ends_well(run)
    check(study, undisturbed)


def test_a_killed_host(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains()
    host = hosts.running(STEP)
    host.kill()
    try:
        assert hosts.running(STEP) is not host
        ends_well(run)
        check(study, undisturbed)
    finally:
        host.start()


def test_a_killed_driver(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains()
    run.kill()
    run.communicate()
    ends_well(study.run())
    check(study, undisturbed)


def test_two_drivers(study: Study, hosts: Hosts, undisturbed: dict[str, str], tmp_path: Path) -> None:
    other = Study(tmp_path / "other", study.name, hosts)
    other.study_file.write_text(study.study_file.read_text())
    for run in [study.run(), other.run()]:
        ends_well(run)
    check(study, undisturbed)


def test_a_host_cut_off_and_back(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains()
    host = hosts.running(STEP)
    host.pull_cable()
    try:
        deadline = time.monotonic() + 150
        while not any(one is not host and one.step_processes(STEP) for one in hosts.workers.values()):
            assert time.monotonic() < deadline, "the step is not begun elsewhere"
            time.sleep(0.3)
        assert not host.step_processes(STEP), "the step that was cut off lives on"
        host.plug_in()
        ends_well(run)
        check(study, undisturbed)
    finally:
        host.plug_in()
        host.kill()
        host.start()


def test_a_store_that_is_gone_for_a_while(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains()
    with stopped(hosts.weed):
        time.sleep(30)
    ends_well(run)
    check(study, undisturbed)
