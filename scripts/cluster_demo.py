"""`make cluster-demo`: the smoke study on two Ray nodes, SeaweedFS and PostgreSQL, all of them on this machine."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from compression_assets_tests.cluster_servers import cluster_missing, object_store, postgres
from compression_assets_tests.ray_servers import ray_cluster, ray_missing, ray_token

STUDY = ("--study", "smoke", "--ordering", "P-KD-Q")
TERMINATED = 128 + signal.SIGTERM


def main() -> int:
    if lacking := cluster_missing() or ray_missing():
        print(f"cluster-demo: {lacking}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        return _demo()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        _say("all servers are stopped, and what they held is gone")


def _demo() -> int:
    with tempfile.TemporaryDirectory(prefix="cluster_") as made:
        folder = Path(made)
        _say("starting an object store (SeaweedFS) and a PostgreSQL")
        with object_store(folder / "store") as store, postgres(folder / "postgres") as url:
            hosts = {
                **{name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
                **store,
                **ray_token(),
                "COMPRESSION_PG": url,
                "COMPRESSION_STORAGE": str(folder / "storage"),
            }
            _say("starting two nodes of Ray, of one CPU each")
            with ray_cluster(folder, hosts) as head:
                _say(f"Ray's head: COMPRESSION_RAY={head}")
                _say(
                    f"models and data: COMPRESSION_STORE={store['COMPRESSION_STORE']} on {store['AWS_ENDPOINT_URL']}"
                )
                code = _compression("run", *STUDY, environment={**hosts, "COMPRESSION_RAY": head})
                _say("stopping the servers")
                return code


def _compression(*arguments: str, environment: Mapping[str, str]) -> int:
    _say(f"compression {shlex.join(arguments)}")
    driver = subprocess.Popen([sys.executable, "-m", "compression_assets.cli", *arguments], env=environment)
    # Ctrl-C is the driver's as well, which ends its steps before the servers are gone.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return driver.wait()
    finally:
        signal.signal(signal.SIGINT, before)
        driver.kill()


def _say(text: str) -> None:
    print(f"cluster-demo: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
