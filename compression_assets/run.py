"""Running a study from a terminal: a Dagster run in the study's own history, with progress lines."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import dagster as dg

from compression_assets.assets.jobs import FULL_STUDY, selection_of
from compression_assets.assets.layout import DATASETS, DATASETS_OP
from compression_assets.costs import expected_seconds
from compression_assets.errors import StudyError
from compression_assets.progress import ProgressView
from compression_assets.settings import current_study, dagster_home, study_root

POLL_SECONDS = 0.5
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Dagster's own console log is kept in its history; the terminal shows progress and errors."""


def full_study_job() -> dg.JobDefinition:
    """The job that runs execute; at module level because every process of a run has to find it again."""
    from compression_assets import defs

    return defs.resolve_job_def(FULL_STUDY)


def run_study(
    selection: str | None = None, ordering: str | None = None, rebuild: tuple[str, ...] = ()
) -> bool:
    """Materialise the current study, or a selection of it, and print how it goes; whether all of it succeeded.

    selection: a Dagster asset selection, such as "*final_p_kd_q*". ordering: one ordering and what it needs.
    rebuild: assets to make again although they are there.
    Raises StudyError for a selection that names nothing.
    """
    study = current_study()
    os.environ["DAGSTER_HOME"] = str(dagster_home(study))
    from compression_assets import defs

    graph = defs.resolve_asset_graph()
    if ordering is not None:
        chosen = selection_of(study, ordering).resolve(graph)
    else:
        chosen = _selected(selection).resolve(graph)
    if not chosen:
        raise StudyError(
            f"the selection {selection!r} names no asset of study {study.name}; list them with: dg list defs"
        )
    costs = expected_seconds(study)
    names = {key.to_user_string() for key in chosen}
    view = ProgressView({name: costs[name] for name in names})
    print(f"study {study.name}: {len(names)} assets, into {study_root(study)}")
    with dg.DagsterInstance.get() as instance:
        _close_abandoned_runs(instance)
        with _Watcher(study_root(study) / "progress", view):
            result = dg.execute_job(
                dg.reconstructable(full_study_job),
                instance=instance,
                run_config=QUIET | _rebuild_config(rebuild),
                tags={"compression/process": str(os.getpid())},
                asset_selection=sorted(chosen),
            )
        for event in result.all_events:
            if event.is_step_failure:
                print(f"failed: {event.step_key}: {_cause(event)}", file=sys.stderr)
    return result.success


def _selected(selection: str | None) -> dg.AssetSelection:
    return dg.AssetSelection.from_string(selection) if selection else dg.AssetSelection.all()


def _rebuild_config(assets: tuple[str, ...]) -> dict[str, object]:
    ops = {DATASETS_OP if asset in DATASETS.values() else asset for asset in assets}
    return {"ops": {op: {"config": {"rebuild": True}} for op in ops}} if ops else {}


def _cause(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    error = data.user_failure_data.description if data.user_failure_data else None
    if error is None and data.error is not None:
        deepest = data.error.cause or data.error
        error = deepest.message.strip()
    return error or "see the run in the UI (make ui)"


def _close_abandoned_runs(instance: dg.DagsterInstance) -> None:
    """A run whose process was killed stays 'started' for ever unless somebody says that it failed."""
    running = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
    for run in instance.get_runs(running):
        process = run.tags.get("compression/process")
        if process and not Path(f"/proc/{process}").exists():
            instance.report_run_failed(run, f"process {process} of this run is gone")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


class _Watcher:
    """Prints the lines of whatever run starts writing its progress while this context is open."""

    def __init__(self, folder: Path, view: ProgressView):
        self._folder = folder
        self._view = view
        self._read = {file: file.stat().st_size for file in folder.glob("*.jsonl")}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._print_new()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._print_new()

    def _print_new(self) -> None:
        for file in sorted(self._folder.glob("*.jsonl")):
            with file.open("rb") as handle:
                handle.seek(self._read.get(file, 0))
                complete, newline, _ = handle.read().rpartition(b"\n")
            self._read[file] = self._read.get(file, 0) + len(complete) + len(newline)
            for line in complete.splitlines():
                if text := self._view.line(json.loads(line)):
                    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
