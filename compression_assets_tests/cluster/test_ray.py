"""A study on Ray, undisturbed: through Dagster's own command, its logs, and what a step refuses."""

import os
import shutil
from pathlib import Path

import pytest

import compression_assets
from compression_assets.graph.cluster.compute_logs import StoreComputeLogs
from compression_assets.store.object_store import ObjectStore
from compression_assets_tests.browser import dagster_dev
from compression_assets_tests.cluster.dagster_pages import DagsterPages
from compression_assets_tests.cluster.ray_study import COMPRESSION, Study
from compression_assets_tests.simulated_hosts import Hosts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_dagsters_own_command_runs_steps_there(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study = Study(tmp_path / "driver", "materialized", hosts)
    code, home = study.command(*COMPRESSION, "home")
    assert code == 0, home
    code, output = study.command(
        *("dagster", "asset", "materialize", "-m", "compression_assets", "--select", "base_model"),
        DAGSTER_HOME=home.strip(),
    )
    assert code == 0, output
    assert list(study.made_versions()) == ["base"]
    assert not (study.root / "models").exists(), "the driver made the model itself"
    for name, value in study.extra.items():
        monkeypatch.setenv(name, value)
    kept = ObjectStore(f"{study.extra['COMPRESSION_STORE']}/{study.name}")
    assert {path.rpartition(".")[2] for path in whole_logs(kept)} == {"out", "err"}
    code, _ = study.command(*COMPRESSION, "run", "--select", "base_model")
    assert code == 0
    assert study.made() == {"base_model": 1}
    environment = {**study.environment, "DAGSTER_HOME": home.strip()}
    with dagster_dev(environment, tmp_path, tmp_path / "dagster_dev.log") as address:
        pages = DagsterPages(address)
        show_the_runs(pages)
        keys = [key for run in pages.runs() for key in pages.log_keys(run["runId"], "base_model")]
        expected = {"/".join(("logs", *key)) + end for key in keys for end in (".out", ".err")}
        assert whole_logs(kept) == expected
        with capfd.disabled():
            show_what_is_written(pages, StoreComputeLogs(study.name), keys[0])


def whole_logs(kept: ObjectStore) -> set[str]:
    """Paths of the logs of steps that have ended."""
    return {one["path"] for one in kept.objects("logs") if not one["path"].endswith(".partial")}


def show_the_runs(pages: DagsterPages) -> None:
    found = pages.runs()
    assert [run["status"] for run in found] == ["SUCCESS", "SUCCESS"]
    materializations = pages.materializations("base_model")
    assert {one["runId"] for one in materializations} == {run["runId"] for run in found}
    for run in found:
        assert run["stepStats"] == [{"stepKey": "base_model", "status": "SUCCESS"}]


def show_what_is_written(pages: DagsterPages, logs: StoreComputeLogs, key: list[str]) -> None:
    """This study's steps print nothing; what one prints is where they keep it."""
    with logs.capture_logs(key):
        os.write(2, b"a warning of a library\n")
    assert pages.log(key) == {"stdout": None, "stderr": "a warning of a library\n"}


def test_a_step_refuses_other_code_than_its_drivers(hosts: Hosts, tmp_path: Path) -> None:
    study = Study(tmp_path / "driver", "other_code", hosts)
    package = Path(compression_assets.__file__).parent
    shutil.copytree(package, tmp_path / "other" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "other" / package.name / "errors.py").open("a") as file:
        file.write("# another version\n")
    shutil.copytree(package.parent / "storage", tmp_path / "other" / "storage", dirs_exist_ok=True)
    code, output = study.command(
        *COMPRESSION, "run", "--select", "base_model", PYTHONPATH=str(tmp_path / "other")
    )
    assert code == 1
    failed = [line for line in output.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1, output
    assert "the driver of this run has" in failed[0] and "compression_assets" in failed[0]
    assert not study.made_versions()
