"""The model assets: the base, and one for each node of the orderings' prefix tree."""

import dagster as dg

from compression_assets.assets.artifact import Artifact, ArtifactConfig, Workplace, make, result
from compression_assets.assets.layout import BASE_MODEL, OWNERS, model_key, relative_directory
from compression_assets.assets.model_metadata import model_metadata
from compression_assets.orderings import Node
from compression_assets.resources.gpu import Gpu
from compression_assets.resources.storage import StudyStorage
from compression_assets.study import Study
from compression_assets.techniques import registry
from compression_assets.techniques.step import StepInputs, StepReport


def model_assets(study: Study) -> list[dg.AssetsDefinition]:
    """The base model and every step result that the study's orderings need, each once."""
    nodes = study.nodes
    steps = [
        _step_asset(study, node, nodes[node.parent]) for node in nodes.values() if node.parent is not None
    ]
    return [_base_asset(study), *steps]


def _base_asset(study: Study) -> dg.AssetsDefinition:
    artifact = Artifact(
        asset=BASE_MODEL,
        settings=study.base_model.model_dump(mode="json"),
        code="compression_assets.sources.models",
        checks=("weights_finite",),
    )

    @dg.asset(
        key=BASE_MODEL,
        group_name="base",
        description="The student before any compression, in bfloat16.",
        kinds={"pytorch", "huggingface"},
        tags={"stage": "base", "depth": "0"},
        owners=OWNERS,
        code_version=artifact.code_version,
        check_specs=artifact.check_specs(),
    )
    def base_model(
        context: dg.AssetExecutionContext, config: ArtifactConfig, storage: StudyStorage, gpu: Gpu
    ) -> dg.MaterializeResult:
        def build(place: Workplace) -> StepReport:
            from compression_assets.checkpoints import check_finite
            from compression_assets.sources.models import fetch_model

            metadata = fetch_model(study.base_model, place.output, storage.downloads)
            return StepReport(checks=(check_finite(place.output),), metadata=metadata)

        manifest, cached = make(context, artifact, build, storage, gpu, config.rebuild)
        return result(
            manifest,
            cached,
            storage.artifacts.root / relative_directory(BASE_MODEL),
            **model_metadata(manifest),
        )

    return base_model


def step_artifact(study: Study, node: Node, parent: Node) -> Artifact:
    """The artifact of one node: made by its last step from its parent and the data which that step reads."""
    assert node.step is not None
    technique = registry.technique(node.technique or "")
    parent_key = model_key(parent)
    return Artifact(
        asset=model_key(node),
        settings=study.recipe(node.step).model_dump(mode="json"),
        code=technique.__module__,
        inputs=(parent_key, *technique.inputs),
        seed=study.seed,
        parent=parent_key,
        technique=node.step,
        path=node.path,
        checks=technique.checks,
    )


def _step_asset(study: Study, node: Node, parent: Node) -> dg.AssetsDefinition:
    artifact = step_artifact(study, node, parent)
    assert node.step is not None and artifact.parent is not None
    technique = registry.technique(node.technique or "")
    recipe = study.recipe(node.step)
    parent_key = artifact.parent
    steps = " → ".join(node.path)

    @dg.asset(
        key=artifact.asset,
        deps=list(artifact.inputs),
        group_name="final_models" if node.final else "intermediate_models",
        description=f"{technique.title.capitalize()} of {parent_key}. Steps so far: {steps}.",
        kinds={"pytorch", "bitsandbytes" if technique.quantizes else "huggingface"},
        tags={
            "stage": "model",
            "technique": (node.technique or "").lower(),
            "depth": str(len(node.path)),
            **({"ordering": node.final.key} if node.final else {}),
        },
        owners=OWNERS,
        code_version=artifact.code_version,
        check_specs=artifact.check_specs(),
    )
    def model(
        context: dg.AssetExecutionContext, config: ArtifactConfig, storage: StudyStorage, gpu: Gpu
    ) -> dg.MaterializeResult:
        def build(place: Workplace) -> StepReport:
            return technique.apply(
                StepInputs(
                    parent=place.inputs[parent_key],
                    output=place.output,
                    recipe=recipe,
                    data={asset: place.inputs[asset] for asset in technique.inputs},
                    seed=study.seed,
                    device=place.device,
                    report=place.report,
                )
            )

        manifest, cached = make(context, artifact, build, storage, gpu, config.rebuild)
        directory = storage.artifacts.root / relative_directory(artifact.asset)
        return result(manifest, cached, directory, **model_metadata(manifest))

    return model
