"""Steps as jobs of Ray: submitted with their resources, and looked after."""

import time
from typing import Any

import dagster as dg
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepHandlerContext
from dagster_ray.core.executor import RayStepHandler
from ray.job_submission import JobSubmissionClient

from compression_assets.graph.cluster.handover import environment, step_cpus
from compression_assets.graph.cluster.reservations import reserved

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

    def at_once(self) -> int:
        """Long steps that the cluster has room for: one for each GPU, or for each CPU where there is none."""
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
        return CheckStepHealthResult.unhealthy(f"its process was lost ({info.message})")

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
        from ray.util.state import list_nodes

        found = list_nodes(address=self.get_address(), detail=True, filters=[("state", "=", "ALIVE")])
        return [dict(node.resources_total or {}) for node in found]

    def submit_job(self, **job: Any) -> str:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return str(super().submit_job(**{**job, **reserved(job, self.nodes())}))
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                return str(job["submission_id"])  # it was taken, and its answer lost
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(2)
