"""The model assets: the base, and one for each node of the orderings' prefix tree."""

import json
from functools import partial

import dagster as dg

from compression_assets.errors import StudyError
from compression_assets.graph.assets.artifact import Artifact, BuildContext
from compression_assets.graph.assets.code import step_code
from compression_assets.graph.assets.memory import of_step
from compression_assets.graph.assets.model_asset import model_asset, released_model_asset
from compression_assets.graph.assets.priority import PRIORITY, model_priorities
from compression_assets.planning.fit import refuse_directory
from compression_assets.store.reports import StepReport
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL, model_key
from compression_assets.study.orderings import Node, quantized_by, recipe_token, technique_of
from compression_assets.techniques import registry
from compression_assets.techniques.step import StepInputs
from compression_assets.weights.formats.bf16 import BF16


def model_assets(study: Study) -> list[dg.AssetsDefinition]:
    """The base model, every step result that the study's orderings need, each once, and the external models."""
    nodes, priorities = study.nodes, model_priorities(study)
    steps = [
        _step_asset(study, node, nodes[node.parent], priorities[node.path])
        for node in nodes.values()
        if node.parent is not None
    ]
    base = released_model_asset(
        study,
        BASE_MODEL,
        study.base_model,
        group="base",
        description="The student before any compression, in bfloat16.",
        tags={"stage": "base", "depth": "0"},
        fits=partial(refuse_directory, study, "base_model"),
        masters=True,
    )
    external = [
        released_model_asset(
            study,
            f"external_{model.name}",
            model.source,
            group="external_models",
            description="A model from elsewhere, in bfloat16: measured, never compressed.",
            tags={"stage": "external"},
            fits=partial(refuse_directory, study, f"external_models[{index}].source"),
        )
        for index, model in enumerate(study.external_models)
    ]
    return [base, *steps, *external]


def step_artifact(study: Study, node: Node, parent: Node) -> Artifact:
    """The artifact of one node: made by its last step from its parent and the data which that step reads."""
    assert node.step is not None
    technique = registry.technique(node.technique or "")
    recipe, data = study.recipe(node.step), study.inputs_of(node.step)
    parent_key = model_key(parent)
    seed = study.seed if node.seed is None else node.seed
    earlier = {name: model_key(study.nodes[path]) for name, path in study.models_read(node.path).items()}

    def build(place: BuildContext) -> StepReport:
        config = json.loads((place.inputs[parent_key] / "config.json").read_text())
        if reason := technique.refusal(config, recipe):
            raise StudyError(f"{model_key(node)} cannot be made: {reason}")
        return technique.apply(
            StepInputs(
                parent=place.inputs[parent_key],
                output=place.output,
                recipe=recipe,
                data={asset: place.inputs[asset] for asset in data},
                seed=seed,
                device=place.device,
                devices=place.devices,
                report=place.report,
                scratch=place.scratch,
                path=node.path,
                models={name: place.inputs[asset] for name, asset in earlier.items()},
            )
        )

    return Artifact(
        asset=model_key(node),
        build=build,
        settings=recipe.model_dump(mode="json"),
        code=step_code(study, node),
        inputs=tuple(dict.fromkeys((parent_key, *data, *earlier.values()))),
        seed=seed,
        parent=parent_key,
        technique=node.step,
        path=node.path,
        checks=technique.checks,
        memory=of_step(parent_key, node.step, study),
        gpus=study.gpus_of(node.step),
    )


def _step_asset(study: Study, node: Node, parent: Node, priority: int) -> dg.AssetsDefinition:
    technique = registry.technique(node.technique or "")
    return model_asset(
        study,
        step_artifact(study, node, parent),
        group=_group(node),
        description=f"{technique.title} of {model_key(parent)}. Steps so far: {' → '.join(node.path)}.",
        tags={
            "stage": "model",
            "technique": (node.technique or "").lower(),
            "depth": str(len(node.path)),
            "seed": str(study.seed if node.seed is None else node.seed),
            **_variants(node),
            **({"ordering": node.final.key} if node.final else {}),
        },
        kind=_library(study, node),
        priority={PRIORITY: str(priority)},
    )


def _library(study: Study, node: Node) -> str:
    """The library of the number format that the node's model is in."""
    token = quantized_by(node.path)
    if token is None:
        return BF16.library
    return registry.technique(technique_of(token)).leaves(study.recipe(token)).library


def _group(node: Node) -> str:
    """Repeats with another seed, and variants of a recipe, stand apart: a study may have hundreds of them."""
    if node.seed is not None:
        return f"seed_{node.seed}"
    if variants := _variants(node):
        return f"variants_{variants['variant'].partition('-')[0].partition('.')[0]}"
    return "final_models" if node.final else "intermediate_models"


def _variants(node: Node) -> dict[str, str]:
    """The tag `variant` of a model some of whose steps are variants, such as "q.stochastic"."""
    tokens = (recipe_token(token).lower().replace(":", ".") for token in node.path if ":" in token)
    named = "-".join(dict.fromkeys(tokens))
    return {"variant": named[:63].rstrip("-.")} if named else {}
