"""Hosts on one machine: each has a network, process numbers, locks and a storage directory of its own.

They share an object store and a PostgreSQL, which are this machine's, and are a Ray cluster whose head runs no steps.
Killing a host's first process kills all of it; its network cable can be pulled.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from compression_assets.machine.lease import LOCKS
from compression_assets_tests.cluster_servers import object_store, postgres, tied
from compression_assets_tests.ray_servers import (
    NODE_IS_UP,
    head_command,
    ray_environment,
    ray_token,
    wait_for_head,
    worker_command,
)

GIVEN_UP = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
}
"""Ray gives a silent host up after half a minute; by default it takes twice as long, and tests have to be short."""

INSIDE = 'hostname "$0"; mkdir -p "$LOCKS"; mount -t tmpfs tmpfs "$LOCKS"; exec "$@"'
WORKERS = ("b", "c")
DASHBOARD = 8265
GCS = 6379
PREFIX = "ca"
"""Of what stands in this machine's network; the number of the process follows that made it."""


def namespaces_missing() -> str:
    """Why no hosts can be simulated here, or ""."""
    if os.geteuid():
        return "simulated hosts need root, for namespaces of their own"
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "simulated hosts need the commands ip and unshare (apt install iproute2 util-linux)"
    made = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=False)
    return "" if made.returncode == 0 else "simulated hosts need namespaces, which may not be made here"


@dataclass
class Host:
    """name: of the host. address: on the bridge. process: outermost of its processes while it is up."""

    name: str
    address: str
    namespace: str
    cable: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        inside = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *tied(),
                    *("ip", "netns", "exec", self.namespace),
                    *inside,
                    *("bash", "-c", INSIDE, self.name),
                    *self.command,
                ],
                env=self.environment,
                cwd=self.log.parent,
                stdout=log,
                stderr=log,
            )

    def start_worker(self) -> None:
        """Start and wait until Ray has it. A busy machine is too slow for the half minute that Ray gives a node."""
        for _ in range(3):
            said = self.log.stat().st_size if self.log.exists() else 0
            self.start()
            assert self.process is not None
            while self.process.poll() is None:
                if NODE_IS_UP in self.log.read_bytes()[said:]:
                    return
                time.sleep(0.2)
        raise AssertionError(self.log.read_text()[-3000:])

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def pull_cable(self) -> None:
        _ip("link", "set", self.cable, "down")

    def plug_in(self) -> None:
        _ip("link", "set", self.cable, "up")

    def step_processes(self, step: str) -> list[int]:
        """This machine's numbers of the processes that run a step there."""
        assert self.process is not None
        return [
            number
            for number in _descendants(self.process.pid)
            if f"DAGSTER_RUN_STEP_KEY={step}" in _environment(number)
            and b"execute_step" in _read(f"/proc/{number}/cmdline")
            and not _read(f"/proc/{number}/cmdline").startswith((b"/bin/sh", b"bash", b"/bin/bash"))
        ]


@dataclass
class Hosts:
    """environment: of a driver on this machine, which is the gateway of the hosts' network."""

    environment: dict[str, str]
    weed: int
    postgres: int
    workers: dict[str, Host] = field(default_factory=dict)
    head: "Host | None" = None

    def database_sessions(self) -> list[int]:
        """Processes of the database that serve somebody."""
        found = _descendants(self.postgres)
        return [number for number in found if _read(f"/proc/{number}/cmdline").startswith(b"postgres: tests")]

    def running(self, step: str, within: float = 400.0) -> Host:
        """The worker on which a step is at work."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for host in self.workers.values():
                if host.process and host.step_processes(step):
                    return host
            time.sleep(0.1)
        raise TimeoutError(f"{step} runs on no host")


@contextmanager
def simulated_hosts() -> Iterator[Hosts]:
    """A head and two workers of one CPU each, and their servers; everything ends with this context."""
    _clear_leftovers()
    net, tag = _free_network(), f"{PREFIX}{os.getpid()}"
    folder = _folder(tag)
    with ExitStack() as held:
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(mode=0o755)
        held.enter_context(_bridge(tag, net))
        gateway = f"{net}.1"
        before = _children()
        store = held.enter_context(object_store(folder / "store", gateway))
        weed = (_children() - before).pop()
        url = held.enter_context(postgres(folder / "postgres", gateway))
        server = (_children() - before - {weed}).pop()
        shared = {**store, **ray_token(), "COMPRESSION_PG": url, "COMPRESSION_CHECKPOINT_MINUTES": "0.05"}
        shared["COMPRESSION_RAY"] = f"http://{net}.2:{DASHBOARD}"
        found = Hosts(shared, weed, server)
        for number, name in enumerate(("a", *WORKERS), start=2):
            address = f"{net}.{number}"
            command = (
                head_command(GCS, DASHBOARD, address, folder / "r", cpus=0)
                if name == "a"
                else worker_command(f"{net}.2:{GCS}", address)
            )
            host = _host(held, name, address, tag, folder, command, shared)
            held.callback(host.kill)
            if name == "a":
                host.start()
                found.head = host
                assert host.process is not None
                wait_for_head(shared["COMPRESSION_RAY"], host.process, host.log)
            else:
                host.start_worker()
                found.workers[name] = host
        yield found


def _clear_leftovers() -> None:
    """Remove the networks of processes that were killed; what ran in them has ended with them."""
    for link in json.loads(_ip("-json", "link", "show", "type", "bridge")):
        tag = link.get("ifname", "")
        number = tag.removeprefix(PREFIX)
        if tag == number or not number.isdecimal() or (int(number) != os.getpid() and _parent(int(number))):
            continue
        for name in ("a", *WORKERS):
            subprocess.run(["ip", "netns", "delete", f"{tag}{name}"], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", tag], check=False, capture_output=True)
        shutil.rmtree(_folder(tag), ignore_errors=True)


def _free_network() -> str:
    """The first three numbers of a network that no device of this machine is in."""
    taken = _ip("-4", "addr", "show")
    return random.choice([net for n in range(1, 250) if f" {(net := f'10.77.{n}')}." not in taken])


def _folder(tag: str) -> Path:
    """A short path: Ray's sockets stand in it."""
    return Path("/tmp") / tag


def _host(
    held: ExitStack,
    name: str,
    address: str,
    tag: str,
    folder: Path,
    command: list[str],
    shared: Mapping[str, str],
) -> Host:
    namespace, cable = f"{tag}{name}", f"v{tag}{name}"
    _ip("netns", "add", namespace)
    held.callback(_ip, "netns", "delete", namespace)
    _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    _ip("link", "set", cable, "master", tag, "up")
    _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        _ip("-n", namespace, "link", "set", device, "up")
    own = folder / name
    own.mkdir()
    environment = ray_environment({**os.environ, **shared, **GIVEN_UP})
    environment |= {"COMPRESSION_STORAGE": str(own / "storage"), "LOCKS": str(LOCKS)}
    environment.pop("COMPRESSION_RAY")
    return Host(name, address, namespace, cable, command, environment, own / "ray.log")


@contextmanager
def _bridge(name: str, net: str) -> Iterator[None]:
    _ip("link", "add", name, "type", "bridge")
    try:
        _ip("addr", "add", f"{net}.1/24", "dev", name)
        _ip("link", "set", name, "up")
        yield
    finally:
        _ip("link", "delete", name)


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """A server that answers nobody until the end of this context, with all that it started."""
    everybody = [process, *_descendants(process)]
    for number in everybody:
        os.kill(number, signal.SIGSTOP)
    try:
        yield
    finally:
        for number in everybody:
            os.kill(number, signal.SIGCONT)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def _children() -> set[int]:
    return {number for number in _processes() if _parent(number) == os.getpid()}


def _descendants(process: int) -> list[int]:
    parents = {number: _parent(number) for number in _processes()}
    found, waiting = [], [process]
    while waiting:
        one = waiting.pop()
        below = [number for number, parent in parents.items() if parent == one]
        found += below
        waiting += below
    return found


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]


def _parent(process: int) -> int:
    fields = _read(f"/proc/{process}/stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def _environment(process: int) -> list[str]:
    return _read(f"/proc/{process}/environ").decode(errors="replace").split("\0")


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError:  # it has ended
        return b""
