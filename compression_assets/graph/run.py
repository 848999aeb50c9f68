"""Running a study from a terminal: a Dagster run in the study's own history, with progress lines."""

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from compression_assets.errors import StudyError
from compression_assets.graph.jobs import FULL_STUDY, selection_of
from compression_assets.graph.launcher import close_abandoned_runs, driving
from compression_assets.machine.cluster import cluster, refuse_silent_head
from compression_assets.machine.progress import ProgressFiles, ProgressView
from compression_assets.machine.shared_progress import ProgressRows
from compression_assets.machine.workers import workers
from compression_assets.planning.costs import costs_here
from compression_assets.planning.fit import refuse_unfit
from compression_assets.store.fingerprints import fingerprint, library_versions
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.strict import near_match
from compression_assets.study.model import Study
from compression_assets.study.names import (
    BASE_MODEL,
    DATASETS,
    DATASETS_OP,
    POOL,
    TABLES,
    model_key,
    relative_directory,
)
from compression_assets.study.places import (
    DEFAULT_STUDY,
    current_study,
    dagster_home,
    storage_root,
    study_root,
)
from compression_assets.weights.checkpoints import masters_freed

POLL_SECONDS = 0.5
INTERRUPTS = (DagsterExecutionInterruptedError, KeyboardInterrupt)
"""What Ctrl-C is raised as, within a run of Dagster's and outside of it."""
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Dagster's own console log is kept in its history; the terminal shows progress and errors."""


def full_study_job() -> dg.JobDefinition:
    """The job that runs execute; at module level because every process of a run has to find it again."""
    from compression_assets.graph.definitions import defs

    return defs.resolve_job_def(FULL_STUDY)


def full_study_job_in_process() -> dg.JobDefinition:
    """The same without processes."""
    return full_study_job().with_executor_def(dg.in_process_executor)


def run_study(
    selection: str | None = None, ordering: str | None = None, rebuild: tuple[str, ...] = ()
) -> bool:
    """Materialise the current study, or a selection of it, and print how it goes; whether all of it succeeded.

    selection: a Dagster asset selection, such as "*final_p_kd_q*". ordering: one ordering and what it needs.
    rebuild: assets to make again although they are there; nothing else is touched.
    Raises StudyError for a selection that names nothing, KeyboardInterrupt when it was interrupted.
    """
    study = current_study()
    refuse_unfit(study, storage_root() / ".downloads", study_root(study))
    refuse_silent_head()
    os.environ["DAGSTER_HOME"] = str(dagster_home(study))
    rebuild = _with_freed_parents(study, rebuild)
    chosen = _chosen(study, selection, ordering, rebuild)
    costs = costs_here(
        study, storage_root() / ".downloads", study_root(study) / relative_directory(BASE_MODEL)
    )
    expected = {key.to_user_string(): costs[key.to_user_string()] for key in chosen}
    print(f"study {study.name}: {len(chosen)} assets, into {study_root(study)}")
    stamp = _Stamp(study, chosen)
    if stamp.is_there() and not rebuild and _all_as_they_were(study, chosen, expected):
        return True
    with dg.DagsterInstance.get() as instance:
        close_abandoned_runs(instance)
        if cluster() is None:
            instance.event_log_storage.set_concurrency_slots(POOL, workers().count)
        with _Watcher(study, ProgressView(expected, workers().count)), interrupts_kept():
            result = launch(instance, chosen, QUIET | _rebuild_config(rebuild))
        if result.success:
            stamp.leave()
    if _interrupted(result):
        raise KeyboardInterrupt
    for cause in causes(result):
        print(f"failed: {cause}", file=sys.stderr)
    return result.success


def _all_as_they_were(study: Study, chosen: AbstractSet[dg.AssetKey], expected: dict[str, float]) -> bool:
    """Run every step once, in this process, and keep no history of it; whether all of them found their work done.

    It pays: most of what a step with nothing to do costs are its process and the events that it writes to the disk.
    What one makes nevertheless, because it was damaged or deleted, the run in the history finds.
    """
    with (
        dg.DagsterInstance.ephemeral() as nowhere,
        _Watcher(study, ProgressView(expected)),
        interrupts_kept(),
    ):
        result = launch(nowhere, chosen, QUIET, full_study_job_in_process)
    if _interrupted(result):
        raise KeyboardInterrupt
    events = result.get_asset_materialization_events()
    metadata = [event.step_materialization_data.materialization.metadata for event in events]
    return result.success and all(one["cached"].value for one in metadata if "cached" in one)


def launch(
    instance: dg.DagsterInstance,
    assets: Iterable[dg.AssetKey],
    run_config: dict[str, Any] | None = None,
    job: Callable[[], dg.JobDefinition] = full_study_job,
) -> dg.JobExecutionResult:
    """Run some assets of the current study and wait."""
    with driving() as tags:
        return dg.execute_job(
            dg.reconstructable(job),
            instance=instance,
            run_config=run_config,
            tags=tags,
            asset_selection=sorted(assets),
        )


def _interrupted(result: dg.JobExecutionResult) -> bool:
    """Whether Ctrl-C ended a run: Dagster takes the signal and reports it as a failure of the step or of the run."""
    failures = [
        event.step_failure_data if event.is_step_failure else event.job_failure_data
        for event in result.all_events
        if event.is_step_failure or event.is_job_failure
    ]
    names = [kind.__name__ for kind in INTERRUPTS]
    return any(failure.error and failure.error.cls_name in names for failure in failures)


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raise Ctrl-C again where Python drops it: what a finalizer or a weak reference's callback raises goes nowhere.

    Dagster raises it wherever the signal finds the main thread, and SQLAlchemy has such callbacks.
    """
    shown = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if isinstance(dropped.exc_value, INTERRUPTS):
            # Later, when the callback is over: raised in here it would be dropped once more.
            main = threading.main_thread().ident
            threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
        else:
            shown(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = shown


def causes(result: dg.JobExecutionResult) -> list[str]:
    """One line for each step of a run that failed by itself; else what ended the run, such as a lost cluster."""
    steps = [f"{event.step_key}: {_cause(event)}" for event in result.all_events if event.is_step_failure]
    ends = [event.job_failure_data.error for event in result.all_events if event.is_job_failure]
    return steps or [f"the run: {(error.cause or error).message.strip()}" for error in ends if error]


def _chosen(
    study: Study, selection: str | None, ordering: str | None, rebuild: tuple[str, ...]
) -> AbstractSet[dg.AssetKey]:
    from compression_assets.graph.definitions import defs

    if selection is not None and ordering is not None:
        raise StudyError("--select and --ordering both say what is run: give one of them")
    graph = defs.resolve_asset_graph()
    names = [key.to_user_string() for key in graph.get_all_asset_keys()]
    for asset in rebuild:
        if asset not in names:
            raise StudyError(f"study {study.name} has no asset {asset!r}: {near_match(asset, names)}")
    if ordering is not None:
        return selection_of(study, ordering).resolve(graph)
    try:
        chosen = _selected(selection, rebuild).resolve(graph)
    except dg.DagsterError as error:
        raise StudyError(
            f"the selection {selection!r} cannot be read: {str(error).splitlines()[0]}"
        ) from error
    chosen &= graph.materializable_asset_keys  # an asset that makes a source is another project's
    if not chosen:
        raise StudyError(
            f"the selection {selection!r} names no asset of study {study.name}; see: dg list defs"
        )
    return chosen


def _with_freed_parents(study: Study, assets: tuple[str, ...]) -> tuple[str, ...]:
    """The assets, and the models above them whose float32 masters `compression clean` has freed."""
    nodes = {model_key(node): node for node in study.nodes.values()}
    found = list(assets)
    for asset in found:
        node = nodes.get(asset)
        if node is None or node.parent is None:
            continue
        parent = model_key(study.nodes[node.parent])
        if masters_freed(study_root(study) / relative_directory(parent)) and parent not in found:
            found.append(parent)
    return tuple(found)


def _selected(selection: str | None, rebuild: tuple[str, ...]) -> dg.AssetSelection:
    if rebuild:
        return dg.AssetSelection.assets(*rebuild)
    return dg.AssetSelection.from_string(selection) if selection else dg.AssetSelection.all()


def _rebuild_config(assets: tuple[str, ...]) -> dict[str, Any]:
    ops = {DATASETS_OP if asset in DATASETS.values() else asset for asset in assets if asset not in TABLES}
    return {"ops": {op: {"config": {"rebuild": True}} for op in ops}} if ops else {}


def _cause(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    error = data.user_failure_data.description if data.user_failure_data else None
    if error is None and data.error is not None:
        deepest = data.error.cause or data.error
        error = deepest.message.strip()
    study = os.environ.get("COMPRESSION_STUDY", DEFAULT_STUDY)
    return error or f"see the run in Dagster's web interface: make ui STUDY={shlex.quote(study)}"


class _Stamp:
    """What the last successful run of these assets was made of. Only a guess at whether the next has work to do.

    Every step still looks for itself; a wrong guess costs time, never a result.
    """

    def __init__(self, study: Study, assets: AbstractSet[dg.AssetKey]):
        from compression_assets.graph.definitions import defs

        graph = defs.resolve_asset_graph()
        versions = {key.to_user_string(): graph.get(key).code_version for key in assets}
        self._content = fingerprint({"assets": versions, "libraries": library_versions()})
        self._store = artifacts_of(study_root(study))
        self._file = dagster_home(study) / "last_success"  # as long as the history

    def is_there(self) -> bool:
        """Also that everything which was there then has not been deleted since."""
        if not self._file.exists():
            return False
        content, *artifacts = self._file.read_text().splitlines()
        return content == self._content and set(artifacts) <= set(self._made())

    def leave(self) -> None:
        self._file.write_text("\n".join([self._content, *self._made()]))

    def _made(self) -> list[str]:
        return [str(directory.relative_to(self._store.root)) for directory in self._store.directories()]


class _Watcher:
    """Prints the lines of whatever run starts writing its progress while this context is open."""

    def __init__(self, study: Study, view: ProgressView):
        folder = study_root(study) / "progress"
        self._events = ProgressRows(study.name) if cluster() else ProgressFiles(folder)
        self._view = view
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
        for event in self._events.new():
            if text := self._view.line(event):
                print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
