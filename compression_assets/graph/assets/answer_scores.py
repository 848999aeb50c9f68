"""`quality_<model>`: SQuAD scores, length and clarity of each model's answers."""

import dagster as dg

from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.settings import ClaritySettings
from compression_assets.graph.assets.artifact import BuildContext
from compression_assets.graph.assets.measured_asset import measured_asset, measurement
from compression_assets.graph.assets.model_asset import released_model_asset
from compression_assets.store.fingerprints import installed_version
from compression_assets.store.reports import StepReport
from compression_assets.study.leaderboard_models import LeaderboardModel, leaderboard_models
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL, FLUENCY_MODEL

PART = "quality"


def answer_scores_assets(study: Study) -> list[dg.AssetsDefinition]:
    """One a model, and `fluency_model` where that is not the base; none in a study that asks no questions."""
    if study.evaluation.answers is None:
        return []
    assets = [_answer_scores_asset(study, model) for model in leaderboard_models(study)]
    clarity = study.evaluation.clarity
    if clarity is not None and clarity.fluency_model != "base":
        assets.append(
            released_model_asset(
                study,
                FLUENCY_MODEL,
                clarity.fluency_model,
                group="base",
                description="The fixed language model under which answers are fluent or not.",
                tags={"stage": "base"},
            )
        )
    return assets


def _answer_scores_asset(study: Study, model: LeaderboardModel) -> dg.AssetsDefinition:
    answers = model.asset("answers")
    clarity = study.evaluation.clarity
    fluency_model = _fluency_asset(clarity)

    def measure(place: BuildContext) -> tuple[list[MetricRow], list[Sample], StepReport]:
        from compression_assets.evaluation.answer_scores import measure_answers, measure_answers_clarity
        from compression_assets.evaluation.answers import read_answers

        given = read_answers(place.inputs[answers])
        rows, samples = measure_answers(given)
        if clarity is not None:
            more_rows, more_samples = measure_answers_clarity(
                given,
                clarity,
                fluency_model,
                place.inputs[fluency_model],
                place.storage.downloads,
                place.device,
                place.report,
            )
            rows, samples = rows + more_rows, samples + more_samples
        values = {row.metric: row.value for row in rows}
        return rows, samples, StepReport(metadata={"summary": f"F1 {values['f1']:.2f}"})

    artifact = measurement(
        model,
        PART,
        measure,
        settings={"clarity": clarity.model_dump(mode="json") if clarity else None} | _versions(clarity),
        code=("compression_assets.evaluation.answer_scores",),
        inputs=(answers, *([fluency_model] if clarity else [])),
        sources=(clarity.embedding_model,) if clarity else (),
    )
    about = f"SQuAD scores, length and clarity of the answers of {model.model}"
    return measured_asset(study, model, artifact, group=PART, about=about)


def _versions(clarity: ClaritySettings | None) -> dict[str, str]:
    """Versions of the libraries whose own rules decide a figure."""
    return (
        {name: installed_version(name) for name in ("sentence-transformers", "textstat", "pyphen")}
        if clarity
        else {}
    )


def _fluency_asset(clarity: ClaritySettings | None) -> str:
    return BASE_MODEL if clarity is None or clarity.fluency_model == "base" else FLUENCY_MODEL
