"""The models of a study as runs in MLflow: recipes, loss curves, figures, and where each model is.

Read from what the study has left, so it can be done at any time and again: a run that is there is brought up to date.
Tags and limits are those of MLflow's tracking API (mlflow.org/docs/latest/ml/tracking).
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError, first_line
from compression_assets.machine.locks import locked
from compression_assets.planning.libraries import refuse_missing_libraries
from compression_assets.reporting.read import Results
from compression_assets.store.artifact_store import Manifest
from compression_assets.study.model import Study
from compression_assets.study.names import TEACHER_MODEL, model_key, relative_directory

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

ARTIFACT = "artifact"
"""Tag by which a run is found again: what made the model, and its content."""
PARENT_RUN = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
METRICS_AT_ONCE, LONGEST_PARAM = 1000, 6000
FINISHED = "FINISHED"
CURVE = "train/"


@dataclass(frozen=True)
class Tracked:
    """runs: models that have one now. new: of them, those that had none."""

    experiment: str
    runs: int
    new: int


def track(study: Study, root: Path, results: Results) -> Tracked:
    """A run for every model of the study that is built, with its figures where it is measured.

    root: storage/<study>. Raises StudyError when MLflow is not installed, cannot be reached, or refuses.
    """
    refuse_missing_libraries(study)
    assert study.tracking is not None
    # MLflow reads these when it is imported: nothing is told to its makers, and a server that is away is not asked for
    # four minutes.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    from mlflow import MlflowClient

    with _told(study.tracking.mlflow), locked(root / ".locks" / "tracking", "tracking", lambda holder: None):
        client = MlflowClient(tracking_uri=study.tracking.mlflow)
        experiment = _experiment(client, study.name)
        runs: dict[Path, str] = {}
        new = 0
        for asset, key in _models(study).items():
            directory = relative_directory(asset)
            if (manifest := results.manifests.get(str(directory))) is None:
                continue
            found = _finished_run(client, experiment, _identity(manifest))
            if found is None:
                # By directory: a model that an ordering has come to end in since has another name.
                parent = runs.get(relative_directory(manifest.parent)) if manifest.parent else None
                found = _new_run(
                    client, experiment, key, manifest, root / directory, results.name(key), parent
                )
                new += 1
            runs[directory] = found
            _log_figures(client, found, results.metrics.get(key, {}))
        return Tracked(study.name, len(runs), new)


def _models(study: Study) -> dict[str, str]:
    """Asset -> key of every model, parents first."""
    own = {model_key(node): node.key for node in study.nodes.values()}
    external = {f"external_{model.name}": f"external_{model.name}" for model in study.external_models}
    return own | ({TEACHER_MODEL: "teacher"} if study.distils else {}) | external


def _experiment(client: "MlflowClient", name: str) -> str:
    """Its id; it is made where it is not there yet."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name)
    if found.lifecycle_stage != "active":
        raise StudyError(f"tracking.mlflow: the experiment {name!r} was deleted there: restore it first")
    return found.experiment_id


def _identity(manifest: Manifest) -> str:
    return f"{manifest.fingerprint[:16]}-{manifest.data_version[:16]}"


def _finished_run(client: "MlflowClient", experiment: str, identity: str) -> str | None:
    """The id of the run of an artifact. One that somebody died at is removed."""
    runs = client.search_runs([experiment], f"tags.{ARTIFACT} = '{identity}'")
    for run in runs:
        if run.info.status == FINISHED:
            return run.info.run_id
        client.delete_run(run.info.run_id)
    return None


def _new_run(
    client: "MlflowClient",
    experiment: str,
    key: str,
    manifest: Manifest,
    directory: Path,
    ordering: str,
    parent: str | None,
) -> str:
    """Write everything that never changes about a model; the run counts as finished when all of it is there."""
    from mlflow.entities import Param

    ended = _milliseconds(manifest.created_at)
    run = client.create_run(
        experiment,
        start_time=ended - round(1000 * manifest.seconds),
        run_name=key,
        tags={
            ARTIFACT: _identity(manifest),
            "model_directory": str(directory),
            "data_version": manifest.data_version,
            "git_revision": manifest.git_revision or "",
            NOTE: f"Model: `{directory}`",
            **({PARENT_RUN: parent} if parent else {}),
        },
    ).info.run_id
    params = [Param(name, value[:LONGEST_PARAM]) for name, value in _params(manifest, ordering).items()]
    client.log_batch(run, params=params)
    points = _curve(manifest, ended)
    while some := list(islice(points, METRICS_AT_ONCE)):
        client.log_batch(run, metrics=some)
    client.set_terminated(run, FINISHED, end_time=ended)
    return run


def _params(manifest: Manifest, ordering: str) -> dict[str, str]:
    recipe = {
        f"recipe.{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in manifest.recipe.items()
    }
    facts = {
        "ordering": ordering,
        "technique": manifest.technique or "",
        "parent": manifest.parent or "",
        "seed": manifest.seed,
        "device": manifest.device or "",
        **{f"library.{name}": version for name, version in manifest.libraries.items()},
    }
    return recipe | {name: str(value) for name, value in facts.items()}


def _curve(manifest: Manifest, at: int) -> Iterator["Metric"]:
    """What the step took, and the loss curve: one point a training step."""
    from mlflow.entities import Metric

    yield Metric("seconds", manifest.seconds, at, 0)
    yield Metric("peak_memory_mib", manifest.peak_memory_bytes / 2**20, at, 0)
    yield Metric("tokens_seen", manifest.tokens_seen, at, 0)
    for entry in manifest.metadata.get("loss_curve") or ():
        for name, value in entry.items():
            if name != "step":
                yield Metric(f"{CURVE}{name}", value, at, int(entry["step"]))


def _log_figures(client: "MlflowClient", run: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Values, intervals and counts of failures that the run does not have yet, or has otherwise."""
    from mlflow.entities import Metric

    known = client.get_run(run).data
    now = _milliseconds(None)
    figures = {name: value for row in rows.values() for name, value in _figures(row)}
    changed = [
        Metric(name, value, now, 0) for name, value in figures.items() if known.metrics.get(name) != value
    ]
    if changed:
        client.log_batch(run, metrics=changed)
    for name, row in rows.items():
        note = str(row.get("note") or "")
        if note != known.tags.get(f"{name}.note", ""):
            client.set_tag(run, f"{name}.note", note)


def _figures(row: Mapping[str, Any]) -> Sequence[tuple[str, float]]:
    """A metric without a value has its count of failures only, and its note."""
    named = {
        "": row["value"],
        ".lo": row.get("lo"),
        ".hi": row.get("hi"),
        ".n_failed": row.get("n_failed") or None,
    }
    return [(row["metric"] + suffix, float(value)) for suffix, value in named.items() if value is not None]


def _milliseconds(moment: str | None) -> int:
    """Of a time in ISO format, or of now."""
    return round(1000 * (datetime.fromisoformat(moment) if moment else datetime.now()).timestamp())


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turns what MLflow raises into one sentence."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise StudyError(f"tracking.mlflow: {address} cannot be written to ({first_line(error)})") from error
