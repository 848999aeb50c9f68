"""Steps as jobs of Ray: submitted with their resources, and looked after."""

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import dagster as dg
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepHandlerContext
from dagster_ray.core.executor import RayStepHandler
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from compression_assets.graph.cluster.handover import environment, step_cpus
from compression_assets.graph.cluster.reservations import reserved
from compression_assets.study.names import POOL

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds for which a head that does not answer is asked again before a run fails."""

ENDS = {
    dg.DagsterEventType.STEP_SUCCESS,
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.STEP_UP_FOR_RETRY,
}


class RayJobs(RayStepHandler):
    """dagster-ray's jobs, each with a step's environment. address: of the head's dashboard.

    A job that has ended and left no end of its step in the history was lost, however Ray calls its state.
    """

    def __init__(self, address: str) -> None:
        super().__init__(
            client=_Client(address),
            env_vars=[f"{name}={value}" for name, value in environment().items()],
            runtime_env=None,
            num_cpus=None,
            num_gpus=None,
            memory=None,
            resources=None,
        )

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        # Again for each step: hosts join and leave.
        slots = step_handler_context.instance.event_log_storage
        slots.set_concurrency_slots(POOL, self._at_once())
        yield from super().launch_step(step_handler_context)

    def _at_once(self) -> int:
        """Long steps that the cluster has room for: one for each GPU, or for its CPUs where there is none."""
        nodes = self.client.nodes()
        gpus, cpus = (sum(node.get(resource, 0.0) for node in nodes) for resource in ("GPU", "CPU"))
        return max(1, int(gpus or cpus / step_cpus()))

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Raises what Ray raises while its head cannot be asked: that says nothing about the step."""
        job = self._get_ray_job_submission_id(step_handler_context)
        try:
            info = self.client.get_job_info(job)
        except RuntimeError as error:
            if "status code 404" not in str(error):
                raise
            return CheckStepHealthResult.unhealthy(f"Ray does not know its job {job} any more")
        if not info.status.is_terminal() or self._has_ended(step_handler_context):
            return CheckStepHealthResult.healthy()
        said = (info.message or "Ray does not say how").splitlines()[0]
        return CheckStepHealthResult.unhealthy(f"its process was lost ({said})")

    def _has_ended(self, context: StepHandlerContext) -> bool:
        """Whether the history has the end of this attempt at a step."""
        args, step = context.execute_step_args, self._get_step_key(context)
        before = args.known_state.get_retry_state().get_attempt_count(step) if args.known_state else 0
        records = context.instance.get_records_for_run(args.run_id, of_type=ENDS).records
        ends = [record for record in records if record.event_log_entry.step_key == step]
        return len(ends) > before


class _Client(JobSubmissionClient):
    """Ray's client, which asks for what the cluster has, and is patient with a head that is gone for a moment."""

    def nodes(self) -> list[dict[str, float]]:
        """Resource -> amount, for each host that is there."""
        return _patiently(self._nodes)

    def _nodes(self) -> list[dict[str, float]]:
        # Asked for those alive alone, Ray takes the lost ones that it leaves out for an answer cut short.
        found = list_nodes(address=self.get_address(), detail=True, limit=10_000)
        return [dict(node.resources_total or {}) for node in found if node.state == "ALIVE"]

    def submit_job(self, **job: Any) -> str:
        wanted = {**job, **reserved(job, self.nodes())}
        try:
            return str(_patiently(lambda: super(_Client, self).submit_job(**wanted)))
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            return str(job["submission_id"])  # it was taken, and its answer lost


def _patiently(ask: Callable[[], T]) -> T:
    """What the head answers, after asking again for PATIENCE seconds while it is not there."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except (OSError, RayStateApiException):
            if time.monotonic() > until:
                raise
            time.sleep(2)
