"""What engines serve: `exported_<model>`, the file that llama.cpp loads, and `served_<model>`, measured in there."""

import dagster as dg

from compression_assets.evaluation.engines.settings import LLAMA_CPP
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.graph.assets.artifact import Artifact, BuildContext
from compression_assets.graph.assets.artifact_asset import Shown, artifact_asset
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.data import split_artifact
from compression_assets.graph.assets.measured_asset import measured_asset, measurement
from compression_assets.graph.assets.memory import of_scoring
from compression_assets.store.reports import Check, StepReport
from compression_assets.study.leaderboard_models import ServedModel, served_models
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL, DATASETS, SERVED
from compression_assets.takeaway.in_engine import CHECK
from compression_assets.weights.formats.gguf_types import GgufForm

GROUP = "serving"
SAME = "engine_predicts_the_same"


def serving_assets(study: Study) -> list[dg.AssetsDefinition]:
    """None in a study without `evaluation.serving`."""
    found = []
    for model in served_models(study):
        if (form := model.settings.gguf) is not None:
            found.append(_exported_asset(study, model, form))
        found.append(_served_asset(study, model))
    return found


def file_name(model: ServedModel) -> str:
    """Name of the file within `exported_<model>`."""
    return f"{model.key.replace('__', '.')}.gguf"


def _exported_asset(study: Study, model: ServedModel, form: GgufForm) -> dg.AssetsDefinition:
    data = DATASETS["calibration" if form.importance else "evaluation"]

    def build(place: BuildContext) -> StepReport:
        from compression_assets.evaluation.engines import llama_cpp
        from compression_assets.takeaway.gguf_check import check_in_llama_cpp
        from compression_assets.takeaway.gguf_export import loaded_back, write_for_serving
        from compression_assets.text.datasets import TokenDataset

        llama_cpp.require()
        file, source = place.output / file_name(model), place.inputs[model.source]
        dataset = TokenDataset.load(place.inputs[data])
        note = f"compression_assets, steps: {' → '.join(model.path) or 'base'}"
        write_for_serving(source, file, f"{study.name} {model.title}", note, form, dataset)
        with loaded_back(source, file) as loaded:
            longest = max(dataset.rows, key=lambda row: len(row.input_ids))
            said = check_in_llama_cpp(loaded, file, list(longest.input_ids))
        summary = f"{file.stat().st_size / 2**20:.1f} MiB"
        return StepReport(checks=(Check(SAME, True, said),), metadata={"summary": summary})

    artifact = Artifact(
        asset=model.model,
        build=build,
        settings=model.settings.model_dump(mode="json"),
        code=(
            "compression_assets.takeaway.gguf_export:write_for_serving",
            "compression_assets.takeaway.gguf_check:check_in_llama_cpp",
            *format_code(study, model.path),
        ),
        inputs=(model.source, data),
        parent=model.source,
        path=model.path,
        checks=(SAME,),
        uses_device=False,
    )
    return artifact_asset(
        study,
        Shown(
            artifact,
            group=GROUP,
            description=f"{model.source} as GGUF in {form.name}, tried in llama.cpp before it is kept.",
            kinds=frozenset({"gguf"}),
            tags={"stage": GROUP},
        ),
        on_demand=(split_artifact(study, "calibration" if form.importance else "evaluation"),),
    )


def _served_asset(study: Study, model: ServedModel) -> dg.AssetsDefinition:
    data = DATASETS["evaluation"]

    def measure(place: BuildContext) -> tuple[list[MetricRow], list[Sample], StepReport]:
        from compression_assets.takeaway.in_engine import measure_directory, measure_file
        from compression_assets.text.datasets import TokenDataset

        dataset, base = TokenDataset.load(place.inputs[data]), place.inputs[BASE_MODEL]
        source, batch_size = place.inputs[model.source], study.evaluation.perplexity.batch_size
        if model.settings.engine == LLAMA_CPP:
            file = place.inputs[model.model] / file_name(model)
            found = measure_file(file, source, base, dataset, batch_size, place.device, place.scratch)
        else:
            found = measure_directory(source, base, dataset, batch_size, place.device)
        about = {"summary": f"perplexity {found.served.perplexity:.2f}", **found.served.about}
        return found.rows(), found.samples(), StepReport(checks=(found.check(),), metadata=about)

    artifact = measurement(
        model,
        SERVED,
        measure,
        settings={SERVED: model.settings.model_dump(mode="json")},
        code=(
            "compression_assets.takeaway.in_engine",
            f"compression_assets.evaluation.engines.{model.settings.engine}:measure",
            *(["compression_assets.evaluation.engines.llama_process"] if model.settings.gguf else []),
            *format_code(study, model.path),
        ),
        inputs=tuple(dict.fromkeys((model.model, model.source, BASE_MODEL, data))),
        warnings=(CHECK,),
        memory=of_scoring(model.source, study),
    )
    return measured_asset(
        study,
        model,
        artifact,
        group=GROUP,
        about=f"{model.title}, in {model.settings.engine}: perplexity, speed and memory",
        on_demand=(split_artifact(study, "evaluation"),),
    )
