"""`make cluster-demo`: the smoke study on two Ray nodes, SeaweedFS and PostgreSQL, all of them on this machine."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from compression_assets_tests.cluster_servers import cluster_missing, object_store, postgres
from compression_assets_tests.ray_servers import ray_cluster, ray_missing, ray_token

STUDY = ("--study", "smoke", "--ordering", "P-KD-Q")


def main() -> int:
    if lacking := cluster_missing() or ray_missing():
        print(f"cluster-demo: {lacking}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="cluster_") as made:
        folder = Path(made)
        print("starting SeaweedFS, PostgreSQL and two nodes of Ray")
        with object_store(folder / "store") as store, postgres(folder / "postgres") as url:
            hosts = {
                **{name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
                **store,
                **ray_token(),
                "COMPRESSION_PG": url,
                "COMPRESSION_STORAGE": str(folder / "storage"),
            }
            with ray_cluster(folder, hosts) as head:
                driver = {**hosts, "COMPRESSION_RAY": head}
                run = [sys.executable, "-m", "compression_assets.cli", "run", *STUDY]
                return subprocess.run(run, env=driver, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
