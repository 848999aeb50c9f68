"""`text_<model>`: perplexity of a text that papers report too, on every model."""

import dagster as dg

from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.text_windows import TextSettings
from compression_assets.graph.assets.artifact import BuildContext
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.measured_asset import measured_asset, measurement
from compression_assets.graph.assets.memory import of_text
from compression_assets.store.reports import StepReport
from compression_assets.study.leaderboard_models import LeaderboardModel, leaderboard_models
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL

PART = "text"


def text_assets(study: Study) -> list[dg.AssetsDefinition]:
    """One a model; none in a study without `evaluation.text`."""
    settings = study.evaluation.text
    return [_text_asset(study, model, settings) for model in leaderboard_models(study)] if settings else []


def _text_asset(study: Study, model: LeaderboardModel, settings: TextSettings) -> dg.AssetsDefinition:
    def measure(place: BuildContext) -> tuple[list[MetricRow], list[Sample], StepReport]:
        from compression_assets.evaluation.text_perplexity import measure_text
        from compression_assets.sources.texts import read_texts

        texts = read_texts(settings.source, place.storage.downloads)
        directory, base = place.inputs[model.model], place.inputs[BASE_MODEL]
        rows, samples = measure_text(directory, base, texts, settings, place.device, place.report)
        shown = ", ".join(f"{row.metric} {row.value:.3f}" for row in rows if row.value is not None)
        return rows, samples, StepReport(metadata={"summary": shown})

    artifact = measurement(
        model,
        PART,
        measure,
        settings={PART: settings.model_dump(mode="json")},
        code=(
            "compression_assets.evaluation.text_perplexity:measure_text",
            "compression_assets.sources.texts:read_texts",
            *format_code(study, model.path),
        ),
        inputs=tuple(dict.fromkeys((model.model, BASE_MODEL))),
        sources=(settings.source,),
        memory=of_text(model.model, settings.max_length),
    )
    about = f"Perplexity of running text under {model.model}"
    return measured_asset(study, model, artifact, group=PART, about=about)
