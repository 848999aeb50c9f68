"""A Ray cluster of processes on this machine, for tests and for the cluster's demo."""

import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from compression_assets_tests.cluster_servers import free_port, tied

SIZES = ("--object-store-memory=100000000", "--memory=4000000000")
"""Of a node: bytes of Ray's object store, which steps do not use, and memory, whatever this machine has free."""

STARTS_WITHIN = 180.0
NODE_IS_UP = b"Ray runtime started"
"""What `ray start` says then."""


def ray_missing() -> str:
    """What this environment lacks for a Ray cluster, or ""."""
    lacking = [name for name in ("ray", "dagster_ray") if importlib.util.find_spec(name) is None]
    return f"{', '.join(lacking)} not installed: make test-cluster" if lacking else ""


def ray_token() -> dict[str, str]:
    """The environment in which Ray's servers and clients know each other."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def head_command(port: int, dashboard: int, address: str, folder: Path, cpus: int = 1) -> list[str]:
    return [
        *_ray("--head", cpus),
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-host={address}",
        f"--node-ip-address={address}",
        f"--temp-dir={folder}",
    ]


def worker_command(head: str, address: str, cpus: int = 1) -> list[str]:
    return [*_ray(f"--address={head}", cpus), f"--node-ip-address={address}"]


def _ray(first: str, cpus: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        first,
        "--block",
        f"--num-cpus={cpus}",
        *SIZES,
    ]


def ray_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Of a host's Ray: commands of this environment, and a step that may queue for a day.

    Nodes on one machine see all of its memory, and would kill steps for what other programs take of it.
    """
    return {
        **environment,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_START_TIMEOUT_SECONDS": "86400",
        "RAY_memory_monitor_refresh_ms": "0",
    }


@contextmanager
def ray_cluster(folder: Path, environment: Mapping[str, str], nodes: int = 2) -> Iterator[str]:
    """Nodes of one CPU each on the loopback: the address of the head's dashboard.

    environment: of every node and its steps, with `ray_token`. folder: a short path, for Ray's sockets stand in it.
    """
    port, dashboard = free_port(), free_port()
    environment = ray_environment(environment)
    log = (folder / "ray.log").open("ab")

    def start(command: list[str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*tied(), *command],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    processes = [start(head_command(port, dashboard, "127.0.0.1", folder / "ray"))]
    try:
        url = f"http://127.0.0.1:{dashboard}"
        wait_for_head(url, processes[0], folder / "ray.log")
        processes += [start(worker_command(f"127.0.0.1:{port}", "127.0.0.1")) for _ in range(nodes - 1)]
        yield url
    finally:
        log.close()
        for process in reversed(processes):
            _stop(process)


def wait_for_head(url: str, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it asks for the token
        except OSError:
            assert head.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ray's own end, which takes its servers with it; what is left of them after a while is killed."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
