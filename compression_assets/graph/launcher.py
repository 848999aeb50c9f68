"""Which process does a run's work, and whether it is still there. Named in storage/dagster.yaml.

Dagster's own local launcher cannot tell, so that a run whose process was killed stays "started" for ever: it holds up
the queue and keeps its pool's slots.
"""

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from uuid import uuid4

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

from compression_assets.machine.cluster import cluster
from compression_assets.machine.liveness import alive, is_alive

DRIVER = "compression/driver"
"""Tag of a run on a cluster: the host of the process that drives it, and a name by which that is known to be alive."""


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's local launcher, with the health check that run monitoring asks for (however a run was started)."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        if gone := gone_process(self._instance, run):
            return CheckRunHealthResult(WorkerStatus.FAILED, f"{gone} of this run is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)


@contextmanager
def driving(tags: Mapping[str, str] = MappingProxyType({})) -> Iterator[dict[str, str]]:
    """The tags of a run that this process drives; until the end of this context every host sees that it is there.

    tags: those that the run has already. On one machine there are none, and nothing is done.
    """
    if cluster() is None or DRIVER in tags:
        yield {}
        return
    driver = f"{platform.node()} {uuid4().hex[:12]}"
    with alive(driver):
        yield {DRIVER: driver}


def gone_process(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """The process that drives a run, if it is no longer there; None also for a run that has not begun.

    On a cluster it may be another host's, whose numbers mean nothing here: it is known by its tag, or not judged.
    """
    if driver := run.tags.get(DRIVER):
        return None if is_alive(driver) else f"the process on {driver.split()[0]}"
    if cluster():
        return None
    starts = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_START, limit=1).records
    process = starts[0].event_log_entry.get_dagster_event().pid if starts else None
    return None if process is None or _is_python(process) else f"process {process}"


def close_abandoned_runs(instance: dg.DagsterInstance) -> None:
    """Mark as failed what Dagster still takes for running although its process is gone, and free its pools' slots."""
    running = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    for run in instance.get_runs(running):
        if gone := gone_process(instance, run):
            instance.report_run_failed(run, f"{gone} of this run is gone")
    # A run that has failed may have left some too: a step whose process dies gives its slot back to nobody.
    for run_id in instance.event_log_storage.get_concurrency_run_ids():
        ended = instance.get_run_by_id(run_id)
        if ended is None or ended.is_finished:
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def _is_python(process: int) -> bool:
    """Whether a process is there and runs Python: its number may have gone to another program.

    Not by its age: a clock that was set forward would make every process too young.
    """
    folder = Path(f"/proc/{process}")
    try:
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and (folder / "exe").readlink().name.startswith("python")
    except PermissionError:  # another user's process, which this one cannot look into
        return True
    except OSError:
        return False
