"""A study on several machines, as far as it can be told without one: settings, reservations, what a step is handed."""

import json
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.events import DagsterEvent

from compression_assets.errors import StudyError
from compression_assets.graph.build import study_assets
from compression_assets.graph.cluster import handover
from compression_assets.graph.cluster.reservations import TAG, reserved
from compression_assets.graph.launcher import close_abandoned_runs
from compression_assets.machine.cluster import Cluster, cluster, refuse_silent_head
from compression_assets.study.cluster_file import use_cluster_file
from compression_assets.study.files import load_study
from compression_assets.study.places import current_study, dagster_home, refuse_foreign_home

NAMES = ("COMPRESSION_RAY", "COMPRESSION_PG", "COMPRESSION_STORE")
ADDRESSES = ("http://127.0.0.1:9", "postgresql://me:hunter2@127.0.0.1:9/db", "s3://bucket/prefix")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, handover.DRIVER, handover.STEP_CPUS, "COMPRESSION_STUDY_TEXT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression_assets.machine.cluster.EXTRA", ())
    for name, value in zip(NAMES, ADDRESSES, strict=True):
        monkeypatch.setenv(name, value)


def test_one_machine_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster() is None
    monkeypatch.setenv("COMPRESSION_PG", ADDRESSES[1])
    assert cluster() is None
    refuse_silent_head()


@pytest.mark.usefixtures("on_a_cluster")
def test_addresses_are_asked_for_and_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster() == Cluster(*ADDRESSES)
    monkeypatch.setenv("COMPRESSION_RAY", "head:8265")
    with pytest.raises(StudyError, match=r"COMPRESSION_RAY is no such address.*http://head:8265"):
        cluster()
    monkeypatch.setenv("COMPRESSION_RAY", ADDRESSES[0])
    monkeypatch.delenv("COMPRESSION_PG")
    with pytest.raises(StudyError, match="COMPRESSION_PG is not set"):
        cluster()


@pytest.mark.usefixtures("on_a_cluster")
def test_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression_assets.machine.cluster.EXTRA", ("not_there",))
    with pytest.raises(StudyError, match=r"not_there is not installed.*compression-assets\[cluster\]"):
        cluster()


@pytest.mark.usefixtures("on_a_cluster")
def test_a_silent_head_is_told() -> None:
    with pytest.raises(StudyError, match=r"head at http://127\.0\.0\.1:9 does not answer"):
        refuse_silent_head()


def test_the_file_beside_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, file = tmp_path / "mine.yaml", tmp_path / "cluster.yaml"
    use_cluster_file(study)
    said = {"ray": ADDRESSES[0], "store": ADDRESSES[2], "postgres": "postgresql://me@host/db"}
    file.write_text(yaml.safe_dump({"cluster": said}))
    monkeypatch.setenv("COMPRESSION_STORE", "s3://other")
    use_cluster_file(study)
    monkeypatch.setattr("compression_assets.machine.cluster.EXTRA", ())
    assert cluster() == Cluster(ADDRESSES[0], "postgresql://me@host/db", "s3://other")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"cluster": {"postgres": ADDRESSES[1]}}, "holds a password"),
        ({"cluster": {"rai": ADDRESSES[0]}}, "cluster.rai is no setting: did you mean"),
        ({"cluster": {"ray": 8265}}, "must be an address"),
        ({"ray": ADDRESSES[0]}, "holds one mapping, 'cluster:'"),
    ],
)
def test_a_file_that_is_wrong(said: object, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(said))
    with pytest.raises(StudyError, match=sentence) as raised:
        use_cluster_file(tmp_path / "mine.yaml")
    assert "hunter2" not in str(raised.value)


@pytest.mark.usefixtures("on_a_cluster")
def test_steps_reserve_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(handover.STEP_CPUS, "3")
    study = load_study("smoke")
    asked = {asset.op.name: json.loads(asset.op.tags[TAG]) for asset in study_assets(study)}
    assert all(tags["num_cpus"] == 3 for tags in asked.values())
    assert asked["final_p"]["num_gpus"] == 1
    assert asked["final_p"]["memory"] > 2**29
    assert "num_gpus" not in asked["leaderboard"]
    assert "num_gpus" not in asked["datasets"]


@pytest.mark.usefixtures("on_a_cluster")
def test_a_shared_training_reserves_all_its_gpus() -> None:
    study = load_study("smoke")
    shared = study.model_copy(update={"training": study.training.model_copy(update={"gpus": 4})})
    asked = {asset.op.name: json.loads(asset.op.tags[TAG]) for asset in study_assets(shared)}
    assert asked["final_kd"]["num_gpus"] == 4
    assert asked["metrics_kd"]["num_gpus"] == 1


def test_on_one_machine_nothing_is_reserved() -> None:
    assert not any(TAG in asset.op.tags for asset in study_assets(load_study("smoke")))


def test_no_more_is_reserved_than_a_host_has() -> None:
    job = {"entrypoint_num_cpus": 4, "entrypoint_num_gpus": 1, "entrypoint_memory": 900}
    small, large = {"CPU": 2.0, "memory": 500.0}, {"CPU": 8.0, "GPU": 2.0, "memory": 700.0}
    head = {"memory": 5000.0}
    assert reserved(job, [head, small]) == {
        "entrypoint_num_cpus": 2,
        "entrypoint_num_gpus": 0,
        "entrypoint_memory": 500,
    }
    assert reserved(job, [head])["entrypoint_num_cpus"] == 1  # before any host has joined
    assert reserved(job, [small, large]) == {
        "entrypoint_num_cpus": 4,
        "entrypoint_num_gpus": 1,
        "entrypoint_memory": 0,
    }


@pytest.mark.parametrize("cpus", ["0", "-1", "two"])
def test_cpus_of_a_step(cpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert handover.step_cpus() == 1
    monkeypatch.setenv(handover.STEP_CPUS, cpus)
    with pytest.raises(StudyError, match=handover.STEP_CPUS):
        handover.step_cpus()


@pytest.mark.usefixtures("on_a_cluster")
def test_a_step_is_handed_its_study_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(Path(handover.study_file("smoke")).read_text().replace("name: smoke", "name: mine"))
    monkeypatch.setenv("COMPRESSION_STUDY", str(file))
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    handed = handover.environment()
    assert "hunter2" not in str(handed)
    assert handed["COMPRESSION_STORE"] == ADDRESSES[2]
    wanted = current_study()
    file.unlink()  # as on another host
    for name, value in handed.items():
        monkeypatch.setenv(name, value)
    assert current_study() == wanted
    refuse_foreign_home(wanted)


def test_a_step_refuses_another_code_or_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "die_when_cut_off", lambda: None)
    handover.join_the_run()  # no driver: nothing to compare with
    monkeypatch.setenv(handover.DRIVER, json.dumps(handover.versions()))
    handover.join_the_run()
    for name in ("compression_assets", "Python", "torch", "dagster"):
        other = {**handover.versions(), name: "0.0"}
        monkeypatch.setenv(handover.DRIVER, json.dumps(other))
        with pytest.raises(StudyError, match=rf"has {name} .* and the driver of this run has 0\.0"):
            handover.join_the_run()


@pytest.mark.usefixtures("on_a_cluster")
def test_a_cluster_has_a_history_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSION_STORAGE", str(tmp_path))
    study = load_study("smoke")
    text = (dagster_home(study) / "dagster.yaml").read_text()
    settings = yaml.safe_load(text)
    assert settings["storage"]["custom"]["config"] == {"study": "smoke"}
    assert settings["telemetry"] == {"enabled": False}
    assert "hunter2" not in text
    monkeypatch.delenv("COMPRESSION_RAY")
    assert "storage" not in yaml.safe_load((dagster_home(study) / "dagster.yaml").read_text())


@pytest.mark.usefixtures("on_a_cluster")
def test_process_numbers_of_other_hosts_are_not_looked_up() -> None:
    with dg.DagsterInstance.ephemeral() as instance:

        @dg.job
        def nothing() -> None:
            pass

        run = instance.create_run_for_job(nothing)
        instance.report_dagster_event(DagsterEvent("PIPELINE_START", "nothing", pid=2**22 + 1), run.run_id)
        close_abandoned_runs(instance)
        found = instance.get_run_by_id(run.run_id)
        assert found and found.status == dg.DagsterRunStatus.STARTED
