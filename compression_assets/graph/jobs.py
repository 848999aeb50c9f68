"""Jobs over the asset graph: everything, or one ordering with all that it needs."""

import subprocess
import sys
from typing import Any

import dagster as dg

from compression_assets.errors import StudyError
from compression_assets.study.leaderboard_models import parts
from compression_assets.study.model import Study
from compression_assets.study.orderings import parse_ordering

FULL_STUDY = "full_study"
ONE_ORDERING = "one_ordering"
REASONS = ("failed: ", "compression: ")
"""How the lines begin in which `compression run` says why it failed."""


class OrderingConfig(dg.Config):
    """ordering: one of the study's, in any spelling, e.g. "P-KD-Q"."""

    ordering: str


def study_jobs(study: Study) -> list[Any]:
    """`full_study`, `one_ordering`, and for the demo study a job named `demo`."""
    everything = dg.AssetSelection.all()
    jobs = [
        dg.define_asset_job(
            FULL_STUDY, everything, description="Every model of the study, measured, and the leaderboard."
        ),
        _one_ordering(),
    ]
    if study.name == "demo":
        jobs.append(
            dg.define_asset_job(
                "demo",
                everything,
                description="The ten models of the paper's Table 1, small enough for a CPU.",
            )
        )
    return jobs


def selection_of(study: Study, ordering: str) -> dg.AssetSelection:
    """All measurements of one ordering and everything upstream.

    Raises StudyError when the study does not list it.
    """
    wanted = parse_ordering(ordering, variants=study.recipes)
    if wanted not in study.parsed_orderings:
        listed = ", ".join(known.text for known in study.parsed_orderings)
        raise StudyError(
            f"study {study.name} has no ordering {wanted.text}; it has {listed}; add it to the study file"
        )
    measured = [f"{part}_{wanted.key}" for part in parts(study)]
    return dg.AssetSelection.assets(*measured).upstream().materializable()


def _one_ordering() -> dg.JobDefinition:
    @dg.op(
        name="materialize_ordering",
        description="Launches a run of this study for one ordering and waits for it.",
    )
    def materialize_ordering(context: dg.OpExecutionContext, config: OrderingConfig) -> None:
        # By the command, which loads the definitions for itself: this module is part of them.
        command = [sys.executable, "-m", "compression_assets.cli", "run", "--ordering", config.ordering]
        reasons = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
            try:
                for line in run.stdout or ():
                    context.log.info(line.rstrip())
                    reasons += [line.strip()] if line.startswith(REASONS) else []
            except BaseException:
                run.terminate()
                raise
        if run.returncode:
            raise dg.Failure(f"{config.ordering}: {'; '.join(reasons)}", allow_retries=False)

    @dg.job(
        name=ONE_ORDERING,
        description="One ordering and everything it needs, measured.",
        executor_def=dg.in_process_executor,
    )
    def one_ordering() -> None:
        materialize_ordering()

    return one_ordering
