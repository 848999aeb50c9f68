"""Which process does a run's work, and whether it is still there. Named in storage/dagster.yaml.

Dagster's own local launcher cannot tell, so that a run whose process was killed stays "started" for ever: it holds up
the queue and keeps its pool's slots.
"""

import os
import time
from pathlib import Path

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

SLACK_SECONDS = 5.0
"""A process that began this much later than its run is another one with the same number."""


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
    if not starts:
        return None
    entry = starts[0].event_log_entry
    process = entry.get_dagster_event().pid
    if process is None or _began(process, before=entry.timestamp + SLACK_SECONDS):
        return None
    return process


def close_abandoned_runs(instance: dg.DagsterInstance) -> None:
    """Mark as failed what Dagster still takes for running although its process is gone, and free its pools' slots."""
    running = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    for run in instance.get_runs(running):
        if gone := gone_process(instance, run.run_id):
            instance.report_run_failed(run, f"process {gone} of this run is gone")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _began(process: int, before: float) -> bool:
    """Whether there is a process of this number that began before a time (seconds since 1970) and still works."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    state, ticks = fields[0], int(fields[19])
    since_boot = float(Path("/proc/uptime").read_text().split()[0])
    began = time.time() - since_boot + ticks / os.sysconf("SC_CLK_TCK")
    return state != "Z" and began <= before
