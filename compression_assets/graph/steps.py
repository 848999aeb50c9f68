"""How the steps of a run get their processes."""

import dagster as dg

from compression_assets.machine.cluster import cluster
from compression_assets.machine.workers import workers


def step_executor(preloaded: str) -> dg.ExecutorDefinition:
    """Ray's where COMPRESSION_RAY is set, else the one that suits this machine (see `machine.workers`).

    preloaded: the module from which steps fork.
    """
    if cluster():
        from compression_assets.graph.cluster.executor import ray_executor

        return ray_executor
    plan = workers()
    if plan.start == "in_process":
        return dg.in_process_executor
    start = {"forkserver": {"preload_modules": [preloaded]}} if plan.start == "forkserver" else {"spawn": {}}
    return dg.multiprocess_executor.configured({"max_concurrent": plan.count, "start_method": start})
