"""Models of a study as runs in MLflow: a real client, a real store, a study made by the command line."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from compression_assets.errors import StudyError
from compression_assets.planning import libraries
from compression_assets.reporting.database import up_to_date
from compression_assets.reporting.read import read_results
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.study.files import load_study
from compression_assets.study.tracking import Tracking
from compression_assets_tests.project import Project

needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="needs MLflow's client: pip install mlflow-skinny"
)


def runs_of(address: str, experiment: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


@needs_mlflow
def test_every_model_of_a_study_is_one_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    address = f"sqlite:///{tmp_path}/mlflow.db"
    measured_alone = {"perplexity": {"batch_size": 8}}
    project = Project(tmp_path, orderings=["P-Q"], tracking={"mlflow": address}, evaluation=measured_alone)
    code, output = project.compression("run")
    assert code == 0 and "3 of 3 runs are new" in output, output
    study, root = load_study(project.study_file), project.root
    runs = runs_of(address, "tiny")
    assert set(runs) == {"base", "p", "p_q"}

    measured = project.query("SELECT metric, value, lo, hi FROM metrics.p_q WHERE value IS NOT NULL")
    assert len(measured) > 3
    logged = runs["p_q"].data.metrics
    for metric, value, lo, hi in measured:
        assert [logged.get(f"{metric}{end}") for end in ("", ".lo", ".hi")] == [value, lo, hi]
    manifest = ArtifactStore(root).manifest(root / "models" / "p", "model_p")
    assert manifest is not None
    client = MlflowClient(tracking_uri=address)
    curve = client.get_metric_history(runs["p"].info.run_id, "train/loss")
    expected = {entry["step"]: entry["loss"] for entry in manifest.metadata["loss_curve"]}
    assert len(expected) > 1 and {point.step: point.value for point in curve} == expected
    assert runs["p"].data.params["recipe.ratio"] == str(study.recipe("P").ratio)
    assert runs["p"].data.tags["model_directory"] == str(root / "models" / "p")
    assert "perplexity" not in runs["p"].data.metrics  # an intermediate model is not measured
    assert runs["p_q"].data.tags["mlflow.parentRunId"] == runs["p"].info.run_id

    # Again, and after somebody died at a run: nothing is there twice.
    client.update_run(runs["p_q"].info.run_id, status="RUNNING")
    client.log_metric(runs["base"].info.run_id, "perplexity", 1.0)
    code, output = project.compression("run", "--select", "tracking")
    assert code == 0 and "1 of 3 runs are new" in output, output
    again = runs_of(address, "tiny")
    assert {name: run.info.run_id for name, run in again.items() if name != "p_q"} == {
        name: run.info.run_id for name, run in runs.items() if name != "p_q"
    }
    assert again["p_q"].data.metrics == logged
    assert again["base"].data.metrics == runs["base"].data.metrics
    assert len(client.get_metric_history(runs["p"].info.run_id, "train/loss")) == len(expected)

    from compression_assets.takeaway.mlflow_runs import track

    # An intermediate model that is an ordering by now is still the parent of what was made from it.
    listed = study.model_copy(update={"name": "listed", "orderings": ("P", "P-Q")})
    assert track(listed, root, read_results(listed, root, up_to_date(listed, root)[0])).new == 3
    children = runs_of(address, "listed")
    assert children["p_q"].data.tags["mlflow.parentRunId"] == children["p"].info.run_id

    client.delete_experiment(client.get_experiment_by_name("tiny").experiment_id)
    results = read_results(study, root, up_to_date(study, root)[0])
    with pytest.raises(StudyError, match="the experiment 'tiny' was deleted there"):
        track(study, root, results)
    row = next(iter(results.metrics["base"].values())) | {"value": None, "n_failed": 3, "note": "no answer"}
    failed = replace(results, metrics={"base": {row["metric"]: row | {"lo": None, "hi": None}}})
    moved = study.model_copy(update={"name": "other"})
    assert track(moved, root, failed).new == 3
    base = runs_of(address, "other")["base"].data
    assert base.metrics[f"{row['metric']}.n_failed"] == 3 and row["metric"] not in base.metrics
    assert base.tags[f"{row['metric']}.note"] == "no answer"


@needs_mlflow
def test_a_tracker_that_is_away_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compression_assets.takeaway.mlflow_runs import _told, track

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    study = load_study("smoke").model_copy(update={"tracking": Tracking(mlflow="http://127.0.0.1:9")})
    with pytest.raises(
        StudyError, match=r"tracking.mlflow: http://127.0.0.1:9 cannot be written to \("
    ) as caught:
        track(study, tmp_path, None)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(KeyError), _told("http://127.0.0.1:9"):
        raise KeyError("a mistake of ours")


def test_a_study_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study("smoke")
    libraries.refuse_missing_libraries(study)
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    tracked = study.model_copy(update={"tracking": Tracking(mlflow="http://127.0.0.1:9")})
    with pytest.raises(StudyError, match=r"tracking.mlflow needs mlflow, .*compression-assets\[mlflow\]"):
        libraries.refuse_missing_libraries(tracked)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("mlruns", "is no address of MLflow"),
        ("sqlite:///mlflow.db", "is no address of MLflow"),
        ("https://me:secret@tracker.example", "has a password in it"),
    ],
)
def test_an_address_is_whole_and_has_no_secret(address: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Tracking(mlflow=address)
    assert Tracking(mlflow="sqlite:////tmp/mlflow.db").mlflow == "sqlite:////tmp/mlflow.db"
