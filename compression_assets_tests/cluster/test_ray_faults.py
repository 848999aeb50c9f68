"""What becomes of a study on Ray when processes, hosts and servers are lost under it, on simulated hosts.

After each fault the models are those of an undisturbed run on one machine, byte for byte, and nothing was made twice.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compression_assets.cli import INTERRUPTED
from compression_assets_tests.cluster.ray_study import SELECTION, STEP, Study
from compression_assets_tests.simulated_hosts import Hosts, stopped

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directory -> data version, made on one machine."""
    study = Study(tmp_path_factory.mktemp("undisturbed"), "undisturbed")
    code, output = study.compression("run", "--select", SELECTION, OMP_NUM_THREADS="1")
    assert code == 0, output
    return study.made_versions()


@pytest.fixture
def study(hosts: Hosts, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Study]:
    made = Study(tmp_path / "driver", request.node.name.removeprefix("test_")[:31], hosts)
    yield made
    made.end()


def ends_well(run: "subprocess.Popen[str]") -> str:
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    return output


def check(study: Study, undisturbed: dict[str, str]) -> None:
    assert study.made_versions() == undisturbed
    assert set(study.made().values()) == {1}, study.made()


def test_a_killed_step(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains(run)
    for process in hosts.running(STEP).step_processes(STEP):
        os.kill(process, signal.SIGKILL)
    ends_well(run)
    check(study, undisturbed)


def test_a_killed_host(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains(run)
    host = hosts.running(STEP)
    host.kill()
    try:
        assert hosts.running(STEP) is not host
        ends_well(run)
        check(study, undisturbed)
    finally:
        host.start_worker()


def test_a_host_killed_in_mid_upload(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains(run)
    host = hosts.running(STEP)
    with stopped(hosts.weed):
        study.wait_until_it_uploads(run)
        host.kill()
    try:
        assert STEP.removeprefix("final_") not in study.made_versions(), "half an artifact is to be seen"
        assert hosts.running(STEP) is not host
        ends_well(run)
        check(study, undisturbed)
    finally:
        host.start_worker()


def test_a_driver_that_is_interrupted(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains(run)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == INTERRUPTED, output
    deadline = time.monotonic() + 120
    while any(host.step_processes(STEP) for host in hosts.workers.values()) or study.locks():
        assert time.monotonic() < deadline, f"a step outlives its run, locks held: {study.locks()}"
        time.sleep(0.3)
    assert STEP not in study.made()
    ends_well(study.run())
    check(study, undisturbed)


def test_a_killed_driver(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains(run)
    run.kill()
    run.communicate()
    ends_well(study.run())
    check(study, undisturbed)


def test_two_drivers(study: Study, hosts: Hosts, undisturbed: dict[str, str], tmp_path: Path) -> None:
    other = Study(tmp_path / "other", study.name, hosts)
    other.study_file.write_text(study.study_file.read_text())
    try:
        for run in [study.run(), other.run()]:
            ends_well(run)
        check(study, undisturbed)
    finally:
        other.end()


def test_a_host_cut_off_and_back(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains(run)
    host = hosts.running(STEP)
    host.pull_cable()
    try:
        deadline = time.monotonic() + 400
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
        host.start_worker()


def test_a_store_that_is_gone_for_a_while(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    run = study.run()
    study.wait_until_it_trains(run)
    with stopped(hosts.weed):
        time.sleep(30)
    ends_well(run)
    check(study, undisturbed)


def test_a_database_that_starts_again(study: Study, hosts: Hosts, undisturbed: dict[str, str]) -> None:
    """A server of PostgreSQL that loses one of its processes ends all sessions, and with them all locks."""
    run = study.run()
    study.wait_until_it_trains(run)
    os.kill(hosts.database_sessions()[0], signal.SIGKILL)
    ends_well(run)
    check(study, undisturbed)
