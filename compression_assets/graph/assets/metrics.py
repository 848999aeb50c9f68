"""One metrics asset a finished model: perplexity, size and compression ratio."""

import dagster as dg

from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.graph.assets.artifact import BuildContext
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.data import split_artifact
from compression_assets.graph.assets.measured_asset import measured_asset, measurement
from compression_assets.graph.assets.memory import of_scoring
from compression_assets.graph.assets.priority import MEASURE
from compression_assets.store.reports import Check, StepReport
from compression_assets.study.leaderboard_models import LeaderboardModel, leaderboard_models
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL, DATASETS

PART = "metrics"
CHECK = "perplexity_below_uniform_guess"


def metrics_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`metrics_<model>` for every ordering of the study, the base included, and every external model."""
    return [_metrics_asset(study, model) for model in leaderboard_models(study)]


def _metrics_asset(study: Study, model: LeaderboardModel) -> dg.AssetsDefinition:
    asset, data = model.model, DATASETS["evaluation"]

    def measure(place: BuildContext) -> tuple[list[MetricRow], list[Sample], StepReport]:
        from compression_assets.evaluation.measure import OTHER_TOKENIZER
        from compression_assets.evaluation.measure import measure as measure_model

        measured = measure_model(
            place.inputs[asset],
            place.inputs[BASE_MODEL],
            place.inputs[data],
            study.evaluation,
            place.device,
            place.report,
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

    artifact = measurement(
        model,
        PART,
        measure,
        settings={"perplexity": study.evaluation.perplexity.model_dump(mode="json")},
        code=("compression_assets.evaluation.measure", *format_code(study, model.path)),
        inputs=tuple(dict.fromkeys((asset, BASE_MODEL, data))),
        warnings=(CHECK,),
        memory=of_scoring(asset, study),
    )
    return measured_asset(
        study,
        model,
        artifact,
        group=PART,
        about=f"Perplexity, size and compression ratio of {asset}",
        priority=MEASURE,
        on_demand=(split_artifact(study, "evaluation"),),
    )
