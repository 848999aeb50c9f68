"""What Ray reserves for a step: tags of its op. None on one machine."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.graph.cluster.handover import DRIVER, step_cpus
from compression_assets.machine.cluster import cluster
from compression_assets.planning.devices import this_cpu
from compression_assets.planning.plan import make_plan
from compression_assets.study.model import Study
from compression_assets.study.places import storage_root

TAG = "dagster-ray/config"

_KNOWN: list[tuple[Study, Mapping[str, int]]] = []
"""The study that was planned last, and its memory: every asset asks, and a plan takes a second."""


def reservation(study: Study, asset: str, gpus: int = 0) -> Mapping[str, str]:
    """Op tags of the step that makes an asset: its CPUs, its memory as far as the plan can tell it, and its GPUs.

    gpus: all of them on one host; 0 for a step that has no use for any. In a step's own process nobody asks any more.
    """
    if cluster() is None or DRIVER in os.environ:
        return {}
    asked = {"num_cpus": step_cpus(), "num_gpus": gpus, "memory": _memory(study).get(asset)}
    return {TAG: json.dumps({name: amount for name, amount in asked.items() if amount})}


def reserved(job: Mapping[str, Any], nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What is reserved for a job: what it asks for, but no more than the largest host has, where the step will say so.

    Ray would let it wait for ever. Without GPUs, steps compute on CPUs; on a GPU, its memory counts, which Ray does not
    know.
    """

    # A head that is to run no steps has no CPUs, but memory.
    able = [node for node in nodes if node.get("CPU")]

    def most(resource: str) -> float:
        return max((node.get(resource, 0.0) for node in able), default=0.0)

    gpus = min(job["entrypoint_num_gpus"] or 0, most("GPU"))
    memory = 0 if gpus else min(job["entrypoint_memory"] or 0, most("memory"))
    return {
        # Of at least one: a job without any would run on a head that is to run none.
        "entrypoint_num_cpus": min(job["entrypoint_num_cpus"] or 1, max(1, most("CPU"))),
        "entrypoint_num_gpus": gpus,
        "entrypoint_memory": int(memory),
    }


def _memory(study: Study) -> Mapping[str, int]:
    """Asset -> peak bytes of its step on a CPU; nothing for a study whose models' shapes are not known yet."""
    if not any(known is study for known, _ in _KNOWN):
        _KNOWN[:] = [(study, _planned(study))]
    return _KNOWN[0][1]


def _planned(study: Study) -> Mapping[str, int]:
    try:
        rows = make_plan(study, this_cpu(), storage_root() / ".downloads").rows
    except StudyError:
        return {}
    return {row.asset: row.memory for row in rows if row.memory}
