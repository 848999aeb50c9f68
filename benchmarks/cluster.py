"""What a study on Ray costs beside one machine: the start of a step, bytes through the store, a host that is lost.

Simulated hosts on this machine (as root, for namespaces); what they need is installed by `make test-cluster`.
"""

import os
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg

from benchmarks.common import machine, spread, table
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets_tests.cluster.ray_study import COMPRESSION, STEP, Study
from compression_assets_tests.cluster_servers import cluster_missing
from compression_assets_tests.ray_servers import ray_missing
from compression_assets_tests.simulated_hosts import Hosts, namespaces_missing, simulated_hosts

ARTIFACT_BYTES = 256 * 2**20
GIB = 2**30
ASSET = "base_model"


def main() -> None:
    """Measure and print three tables."""
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    rounds = arguments.parse_args().rounds
    if lacking := cluster_missing() or ray_missing() or namespaces_missing():
        raise SystemExit(f"benchmarks.cluster: {lacking}")
    print(f"## A study on Ray\n\n{machine()} Load {os.getloadavg()[0]:.1f} at the beginning.\n", flush=True)
    with TemporaryDirectory(prefix="bench") as made, simulated_hosts() as hosts:
        folder = Path(made)
        starts = {
            "one machine": [_start(folder, f"alone_{n}", None) for n in range(rounds)],
            "Ray": [_start(folder, f"start_{n}", hosts) for n in range(rounds)],
        }
        rows = [(where, spread(seconds, 1)) for where, seconds in starts.items()]
        print(table(("start of a step", "seconds (min / median / max)"), rows), "\n", flush=True)
        moved = [_moved(folder, f"moved_{n}", hosts.environment) for n in range(rounds)]
        columns = ("publish on one machine", "publish to the store", "fetch from the store")
        rows = [(name, spread([one[n] for one in moved], 1)) for n, name in enumerate(columns)]
        print(table(("a GiB", "seconds (min / median / max)"), rows), "\n", flush=True)
        lost = [_lost(folder, f"lost_{n}", hosts) for n in range(rounds)]
        rows = [("until its step runs elsewhere", spread(lost, 1))]
        print(table(("a killed host", "seconds (min / median / max)"), rows), flush=True)


def _start(folder: Path, name: str, hosts: Hosts | None) -> float:
    """Seconds from the order to start a step's process until it begins to work."""
    study = Study(folder / name, name, hosts)
    _run(study, COMPRESSION_WORKERS="2")
    code, home = study.command(*COMPRESSION, "home")
    assert code == 0, home
    with _environment(study.environment), dg.DagsterInstance.from_config(home.strip()) as instance:
        (run,) = instance.get_runs()
        times = {
            kind: instance.get_records_for_run(run.run_id, of_type=kind).records[0].timestamp
            for kind in (dg.DagsterEventType.STEP_WORKER_STARTING, dg.DagsterEventType.STEP_START)
        }
    ordered, began = times.values()
    return began - ordered


def _run(study: Study, **extra: str) -> None:
    code, output = study.command(*COMPRESSION, "run", "--select", ASSET, **extra)
    assert code == 0, output


def _moved(folder: Path, name: str, environment: Mapping[str, str]) -> tuple[float, float, float]:
    """Seconds a GiB: publishing an artifact on one machine, into the store, and fetching it on another host."""
    content = os.urandom(ARTIFACT_BYTES)
    alone = _published(ArtifactStore(folder / f"{name}_alone"), content)
    with _environment({**environment, "COMPRESSION_STORE": f"{environment['COMPRESSION_STORE']}/{name}"}):
        shared = _published(artifacts_of(folder / "a" / name), content)
        other = artifacts_of(folder / "b" / name)
        started = time.monotonic()
        assert other.local(other.root / "models" / "m", "m")
        fetched = time.monotonic() - started
    scale = GIB / ARTIFACT_BYTES
    return alone * scale, shared * scale, fetched * scale


def _published(store: ArtifactStore, content: bytes) -> float:
    directory = store.root / "models" / "m"
    with store.exclusive(directory, "m"), store.building(directory) as work:
        (work / "model.safetensors").write_bytes(content)
        started = time.monotonic()
        store.publish(work, directory, asset="m", fingerprint="f", created_at="now")
        return time.monotonic() - started


def _lost(folder: Path, name: str, hosts: Hosts) -> float:
    study = Study(folder / name, name, hosts)
    run = study.run()
    study.wait_until_it_trains(run)
    host = hosts.running(STEP)
    started = time.monotonic()
    host.kill()
    hosts.running(STEP)
    seconds = time.monotonic() - started
    output, _ = run.communicate(timeout=600)
    host.start_worker()
    assert run.returncode == 0, output
    return seconds


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    main()
