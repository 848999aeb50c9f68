"""The executor that runs each step as a job on a Ray cluster: dagster-ray's, which begins lost steps again."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster._core.definitions.executor_definition import multiple_process_executor_requirements
from dagster._core.events import DagsterEvent
from dagster._core.execution.plan.objects import StepRetryData
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.init import InitExecutorContext
from dagster._core.executor.step_delegating import StepDelegatingExecutor

from compression_assets.errors import StudyError
from compression_assets.graph.launcher import close_abandoned_runs, driving
from compression_assets.machine.cluster import cluster

ATTEMPTS = 3
"""Of a step whose process is lost; what fails by itself is not tried again."""

LOOK_EVERY = 5
"""Seconds between two looks at whether the steps' processes are still there."""


@dg.executor(name="ray", requirements=multiple_process_executor_requirements())
def ray_executor(context: InitExecutorContext) -> "RayExecutor":
    """Steps as Ray jobs, with the resources in their tags. Raises StudyError when COMPRESSION_RAY names no cluster."""
    from compression_assets.graph.cluster.jobs import RayJobs

    named = cluster()
    if named is None:
        raise StudyError("this run was planned for Ray, and COMPRESSION_RAY is not set here: set it")
    return RayExecutor(RayJobs(named.ray))


class RayExecutor(StepDelegatingExecutor):
    """Begins a step again when its process was lost: killed, or with its host."""

    def __init__(self, jobs: Any) -> None:
        super().__init__(
            jobs,
            retries=RetryMode.ENABLED,
            check_step_health_interval_seconds=LOOK_EVERY,
        )

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[DagsterEvent]:
        instance, run = plan_context.instance, plan_context.dagster_run
        with driving(run.tags) as tags:
            instance.add_run_tags(run.run_id, tags)
            close_abandoned_runs(instance)
            yield from super().execute(plan_context, execution_plan)

    def log_failure_or_retry_event_after_error(
        self, step_context: Any, err_info: Any, known_state: Any
    ) -> DagsterEvent:
        attempts = known_state.get_retry_state().get_attempt_count(step_context.step.key) + 1
        lost = err_info.cls_name is None  # an exception has a class, a process that is gone has none
        if lost and attempts < ATTEMPTS:
            return DagsterEvent.step_retry_event(step_context, StepRetryData(error=err_info))
        return super().log_failure_or_retry_event_after_error(step_context, err_info, known_state)
