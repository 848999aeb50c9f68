"""`diagnostics_<model>`: what the last step of a model did, for models that nothing else measures; and one table.

Steps that end an ordering have a perplexity from their metrics asset, and D changes none; what is left is measured
here, on the first conversations of the evaluation set. A Q that follows training is compared with the grid before it.
"""

import json
from typing import Any

import dagster as dg

from compression_assets.evaluation.settings import DiagnosticsSettings
from compression_assets.graph.assets.artifact import Artifact, BuildContext
from compression_assets.graph.assets.artifact_asset import Shown, artifact_asset
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.data import split_artifact
from compression_assets.graph.assets.memory import of_scoring
from compression_assets.graph.assets.priority import FILL, PRIORITY
from compression_assets.graph.assets.report_asset import Outcome, report_asset
from compression_assets.graph.resources import StudyStorage
from compression_assets.reporting.step_diagnostics import (
    FILE,
    LAYERS_TABLE,
    first_rows,
    perplexity,
    read_diagnostics,
    write_step_diagnostics,
)
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.reports import StepReport
from compression_assets.study.diagnosed import compared_with, diagnosed, follows_training, to_score
from compression_assets.study.model import Study
from compression_assets.study.names import (
    DATASETS,
    STEP_DIAGNOSTICS,
    diagnostics_key,
    metrics_key,
    model_key,
)
from compression_assets.study.orderings import Node
from compression_assets.tables import markdown


def diagnostics_assets(study: Study) -> list[dg.AssetsDefinition]:
    """None unless the study has `evaluation.diagnostics`."""
    if study.evaluation.diagnostics is None:
        return []
    nodes = diagnosed(study)
    return [*(_node_asset(study, study.evaluation.diagnostics, node) for node in nodes), _table(study, nodes)]


def _node_asset(study: Study, settings: DiagnosticsSettings, node: Node) -> dg.AssetsDefinition:
    scored = settings.perplexity_of_steps and to_score(node)
    return artifact_asset(
        study,
        Shown(
            _artifact(study, settings, node, scored),
            group="diagnostics",
            description=f"What the last step of {model_key(node)} did: perplexity, or what its Q left of the training.",
            kinds=frozenset({"duckdb"}),
            tags={"stage": "diagnostics", "technique": (node.technique or "").lower()},
            metadata=_metadata,
        ),
        priority={PRIORITY: FILL},
        on_demand=(split_artifact(study, "evaluation"),) if scored else (),
    )


def _artifact(study: Study, settings: DiagnosticsSettings, node: Node, scored: bool) -> Artifact:
    model, data = model_key(node), DATASETS["evaluation"]
    after_training = follows_training(study, node)
    start, quantized, since = compared_with(node) if after_training else ((), None, [])
    keys = {path: model_key(study.nodes[path]) for path in (start, quantized, *since) if path is not None}

    def build(place: BuildContext) -> StepReport:
        from compression_assets.evaluation.diagnostics import compare
        from compression_assets.evaluation.survival import as_row, total

        found: dict[str, Any] = {"perplexity": None, "survival": None, "layers": [], "left_out": {}}
        summary = []
        if scored:
            found["perplexity"] = _score(study, settings, place, model, data)
            summary.append(f"perplexity {perplexity(found['perplexity']):.2f}")
        if after_training:
            comparison = compare(
                place.inputs[keys[start]],
                place.inputs[keys[quantized]] if quantized else None,
                [place.inputs[keys[path]] for path in since],
                place.inputs[model],
            )
            whole = total(list(comparison.layers.values()))
            found["layers"] = [{"layer": name, **as_row(one)} for name, one in comparison.layers.items()]
            found |= {
                "survival": as_row(whole),
                "left_out": comparison.left_out,
                "on_grid": quantized is not None,
            }
            kept = "no update" if whole.surviving is None else f"{whole.surviving:.3f} of the update survives"
            summary.append(f"{kept}, {whole.codes_changed:.2%} of codes changed")
        (place.output / FILE).write_text(json.dumps(found, indent=1, allow_nan=False))
        return StepReport(metadata={"summary": ", ".join(summary)})

    inputs = (model, *([data] if scored else []), *(keys.values() if after_training else ()))
    return Artifact(
        asset=diagnostics_key(node),
        build=build,
        settings=settings.model_dump(mode="json") | {"batch_size": study.evaluation.perplexity.batch_size},
        code=("compression_assets.evaluation.diagnostics", *format_code(study, node.path)),
        inputs=tuple(dict.fromkeys(inputs)),
        parent=model,
        path=node.path,
        memory=of_scoring(model, study),
    )


def _score(
    study: Study, settings: DiagnosticsSettings, place: BuildContext, model: str, data: str
) -> dict[str, tuple[float, int]]:
    """Conversation -> (negative log-likelihood in nats, predicted tokens) of the first conversations."""
    from compression_assets.evaluation.perplexity import measure_perplexity
    from compression_assets.text.datasets import TokenDataset

    dataset = first_rows(TokenDataset.load(place.inputs[data]), settings.tokens)
    scored = measure_perplexity(
        place.inputs[model], dataset, study.evaluation.perplexity.batch_size, place.device, place.report
    )
    return dict(zip(scored.ids, zip(scored.nll, scored.tokens, strict=True), strict=True))


def _metadata(manifest: Manifest, storage: StudyStorage) -> dict[str, Any]:
    found = read_diagnostics(storage.local(manifest.asset))
    shown = {name: value for name, value in (found["survival"] or {}).items() if value is not None}
    if found["perplexity"]:
        shown["perplexity"] = perplexity(found["perplexity"])
    if found["left_out"]:
        shown["left_out"] = dg.MetadataValue.json(found["left_out"])
    return shown


def _table(study: Study, nodes: list[Node]) -> dg.AssetsDefinition:
    def compute(storage: StudyStorage, _: Any) -> Outcome:
        rows, absent = write_step_diagnostics(study, storage.artifacts)
        shown = [
            *("ordering", "step", "technique", "perplexity_before", "perplexity_after", "codes_changed"),
            "surviving",
        ]
        table = markdown(shown, [[row[name] for name in shown] for row in rows])
        return Outcome(
            {
                "rows": len(rows),
                "not_diagnosed": ", ".join(absent),
                "steps": dg.MetadataValue.md(table),
            }
        )

    return report_asset(
        study,
        STEP_DIAGNOSTICS,
        compute,
        deps=[
            *map(diagnostics_key, nodes),
            *map(metrics_key, study.parsed_orderings),
            DATASETS["evaluation"],
        ],
        description="Every step of every ordering: perplexity before and after, and what a Q left of the training "
        f"before it. DuckDB tables {STEP_DIAGNOSTICS} and {LAYERS_TABLE}.",
    )
