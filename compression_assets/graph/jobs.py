"""Jobs over the asset graph: everything, or one ordering with all that it needs."""

from typing import Any

import dagster as dg

from compression_assets.errors import StudyError
from compression_assets.study.leaderboard_models import parts
from compression_assets.study.model import Study
from compression_assets.study.orderings import parse_ordering

FULL_STUDY = "full_study"
ONE_ORDERING = "one_ordering"


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
        _one_ordering(study),
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


def _one_ordering(study: Study) -> dg.JobDefinition:
    @dg.op(
        name="materialize_ordering",
        description="Launches a run of this study for one ordering and waits for it.",
    )
    def materialize_ordering(context: dg.OpExecutionContext, config: OrderingConfig) -> None:
        from compression_assets.graph.definitions import defs
        from compression_assets.graph.run import causes, launch

        try:
            selection = selection_of(study, config.ordering)
        except StudyError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        result = launch(context.instance, selection.resolve(defs.resolve_asset_graph()))
        if not result.success:
            sentences = "; ".join(causes(result))
            raise dg.Failure(f"run {result.run_id} of {config.ordering}: {sentences}", allow_retries=False)

    @dg.job(
        name=ONE_ORDERING,
        description="One ordering and everything it needs, measured.",
        executor_def=dg.in_process_executor,
    )
    def one_ordering() -> None:
        materialize_ordering()

    return one_ordering
