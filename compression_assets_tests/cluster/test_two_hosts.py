"""One study on two hosts at once: a storage directory each, an object store and a PostgreSQL between them."""

import json
import re
import sys
from pathlib import Path

import pytest

from compression_assets_tests.project import Project

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
RUN = ("-m", "compression_assets.cli", "run", "--ordering", "P-KD-Q")


def test_two_drivers_of_one_study_make_everything_once(cluster: dict[str, str], tmp_path: Path) -> None:
    hosts = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        hosts.append(Project(folder))
    runs = [host.start(sys.executable, *RUN) for host in hosts]
    outputs = [run.communicate(timeout=850)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)
    made = [made_by(host) for host in hosts]
    assert not made[0] & made[1]
    (planned,) = {int(re.search(r"(\d+) assets, into", output)[1]) for output in outputs}  # type: ignore[index]
    assert len(made[0] | made[1]) == planned
    assert {"base_model", "final_p_kd_q", "metrics_p_kd_q"} <= made[0] | made[1]
    tables = [
        host.query("SELECT * EXCLUDE (run_id, measured_at) FROM all_metrics ORDER BY ALL") for host in hosts
    ]
    code, output = hosts[0].compression("leaderboard", **cluster)
    assert code == 0 and "P-KD-Q" in output, output
    assert tables[0] == tables[1] != []


def made_by(host: Project) -> set[str]:
    """Assets that a host's runs made, rather than found."""
    lines = [
        line for file in (host.root / "progress").glob("*.jsonl") for line in file.read_text().splitlines()
    ]
    ended = [event for event in map(json.loads, lines) if event["kind"] == "finished"]
    return {event["asset"] for event in ended if not event["cached"]}
