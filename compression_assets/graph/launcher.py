"""Which process does a run's work, and whether it is still there. Named in storage/dagster.yaml.

Dagster's own local launcher cannot tell, so that a run whose process was killed stays "started" for ever: it holds up
the queue and keeps its pool's slots.
"""

from pathlib import Path

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's local launcher, with the health check that run monitoring asks for (however a run was started)."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        if gone := gone_process(self._instance, run.run_id):
            return CheckRunHealthResult(WorkerStatus.FAILED, f"process {gone} of this run is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def gone_process(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """The process that began a run, if it is no longer there; None also for a run that has not begun."""
    starts = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_START, limit=1).records
    process = starts[0].event_log_entry.get_dagster_event().pid if starts else None
    return None if process is None or _is_python(process) else process


def close_abandoned_runs(instance: dg.DagsterInstance) -> None:
    """Mark as failed what Dagster still takes for running although its process is gone, and free its pools' slots."""
    running = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    for run in instance.get_runs(running):
        if gone := gone_process(instance, run.run_id):
            instance.report_run_failed(run, f"process {gone} of this run is gone")
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
