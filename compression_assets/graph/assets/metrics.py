"""One metrics asset a finished model: perplexity, distance to the base, size and compression ratio."""

from pathlib import Path

import dagster as dg

from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.graph.assets.artifact import Artifact, BuildContext
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.data import split_artifact
from compression_assets.graph.assets.measured_asset import measured_asset, measurement
from compression_assets.graph.assets.memory import of_measuring
from compression_assets.graph.assets.priority import MEASURE
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.store.reports import Check, StepReport
from compression_assets.study.leaderboard_models import LeaderboardModel, base_of, leaderboard_models
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL, DATASETS, relative_directory

PART = "metrics"
CHECK = "perplexity_below_uniform_guess"


def metrics_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`metrics_<model>` for every ordering of the study, the base included, and every external model."""
    return [_metrics_asset(study, model) for model in leaderboard_models(study)]


def _metrics_asset(study: Study, model: LeaderboardModel) -> dg.AssetsDefinition:
    base = base_of(study)
    return measured_asset(
        study,
        model,
        metrics_artifact(study, model),
        group=PART,
        about=f"Perplexity, distance to the base, size and compression ratio of {model.model}",
        priority=MEASURE,
        on_demand=(
            split_artifact(study, "evaluation"),
            *([metrics_artifact(study, base)] if model != base else []),
        ),
    )


def metrics_artifact(study: Study, model: LeaderboardModel) -> Artifact:
    """How `metrics_<model>` is made; of every model but the base with what the base's left."""
    asset, data, base = model.model, DATASETS["evaluation"], base_of(study)
    of_base = base.asset(PART)

    def measure(place: BuildContext) -> tuple[list[MetricRow], list[Sample], StepReport]:
        from compression_assets.evaluation.measure import OTHER_TOKENIZER, STATES
        from compression_assets.evaluation.measure import measure as measure_model

        measured = measure_model(
            place.inputs[asset],
            place.inputs[BASE_MODEL],
            place.inputs[data],
            study.evaluation,
            place.device,
            place.report,
            place.output / STATES if model == base else states_of_base(study, place.storage.artifacts),
        )
        perplexity = measured.perplexity
        if perplexity is None:
            better, detail, summary = True, OTHER_TOKENIZER, "no perplexity: another tokenizer"
        else:
            better, summary = perplexity < measured.vocabulary, f"perplexity {perplexity:.2f}"
            detail = f"{summary}, a uniform guess has {measured.vocabulary:,}"
        report = StepReport(
            checks=(Check(CHECK, better, detail, blocking=False),),
            metadata={"summary": summary, "precision": measured.precision},
        )
        return measured.rows, measured.samples, report

    return measurement(
        model,
        PART,
        measure,
        settings={"perplexity": study.evaluation.perplexity.model_dump(mode="json")},
        code=("compression_assets.evaluation.measure", *format_code(study, model.path)),
        inputs=(asset, data) if model == base else (asset, data, BASE_MODEL, of_base),
        warnings=(CHECK,),
        memory=of_measuring(asset, study),
    )


def states_of_base(study: Study, store: ArtifactStore) -> Path | None:
    """The hidden states that the base's measurement left; None where base or data have been made anew since.

    That is so in a run of a selection without `metrics_base`. Raises StudyError when one of the three is missing.
    """
    from compression_assets.evaluation.measure import STATES

    base = base_of(study)
    directory = store.root / relative_directory(base.asset(PART))
    made = store.require(directory, base.asset(PART), PART, verify=False)
    for asset in (base.model, DATASETS["evaluation"]):
        read = relative_directory(asset)
        now = store.require(store.root / read, asset, PART, verify=False)
        if made.inputs.get(str(read)) != now.data_version:
            return None
    return directory / STATES
