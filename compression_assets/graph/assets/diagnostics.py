"""What each step of each ordering did: `diagnostics_<model>` for models that nothing else measures, and one table.

Steps that end an ordering have a perplexity from their metrics asset, and D changes none; what is left is measured
here, on the first conversations of the evaluation set. A Q that follows training is compared with the grid before it.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

import dagster as dg

from compression_assets.evaluation.settings import DiagnosticsSettings
from compression_assets.graph.assets.artifact import (
    Artifact,
    ArtifactConfig,
    Workplace,
    as_failure,
    make,
    result,
    tracked,
)
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.data import split_input
from compression_assets.graph.assets.made_on_demand import make_missing
from compression_assets.graph.assets.measured import read_measured
from compression_assets.graph.assets.memory import of_scoring
from compression_assets.graph.assets.priority import FILL, PRIORITY
from compression_assets.graph.resources.gpu import Gpu
from compression_assets.graph.resources.storage import StudyStorage
from compression_assets.store.reports import StepReport
from compression_assets.study.diagnosed import compared_with, diagnosed, follows_training, to_score
from compression_assets.study.model import Study
from compression_assets.study.names import (
    DATASETS,
    OWNERS,
    POOL,
    STEP_DIAGNOSTICS,
    diagnostics_key,
    metrics_key,
    model_key,
    relative_directory,
)
from compression_assets.study.orderings import DEQUANTIZATION, Node, StepPath
from compression_assets.tables import markdown

FILE = "diagnostics.json"
LAYERS_TABLE = "layer_diagnostics"


def diagnostics_assets(study: Study) -> list[dg.AssetsDefinition]:
    """None unless the study has `evaluation.diagnostics`."""
    if study.evaluation.diagnostics is None:
        return []
    nodes = diagnosed(study)
    return [*(_node_asset(study, study.evaluation.diagnostics, node) for node in nodes), _table(study, nodes)]


def _node_asset(study: Study, settings: DiagnosticsSettings, node: Node) -> dg.AssetsDefinition:
    model, data = model_key(node), DATASETS["evaluation"]
    scored = settings.perplexity_of_steps and to_score(node)
    start, quantized, since = compared_with(node) if follows_training(study, node) else ((), None, [])
    keys = {path: model_key(study.nodes[path]) for path in (start, quantized, *since) if path is not None}
    inputs = (model, *([data] if scored else []), *(keys.values() if follows_training(study, node) else ()))
    artifact = Artifact(
        asset=diagnostics_key(node),
        settings=settings.model_dump(mode="json") | {"batch_size": study.evaluation.perplexity.batch_size},
        code=("compression_assets.evaluation.diagnostics", *format_code(study, node.path)),
        inputs=tuple(dict.fromkeys(inputs)),
        parent=model,
        path=node.path,
        needs=of_scoring(model, study),
    )

    @dg.asset(
        key=artifact.asset,
        deps=list(artifact.inputs),
        group_name="diagnostics",
        description=f"What the last step of {model} did: perplexity, or what its Q left of the training.",
        kinds={"duckdb"},
        tags={"stage": "diagnostics", "technique": (node.technique or "").lower()},
        owners=OWNERS,
        code_version=artifact.code_version,
        op_tags={PRIORITY: FILL},
        pool=POOL,
    )
    def diagnostics(
        context: dg.AssetExecutionContext, config: ArtifactConfig, storage: StudyStorage, gpu: Gpu
    ) -> dg.MaterializeResult:
        def build(place: Workplace) -> StepReport:
            from compression_assets.evaluation.diagnostics import compare
            from compression_assets.evaluation.survival import as_row, total

            found: dict[str, Any] = {"perplexity": None, "survival": None, "layers": [], "left_out": {}}
            summary = []
            if scored:
                found["perplexity"] = _score(study, settings, place, model, data)
                summary.append(f"perplexity {_perplexity(found['perplexity']):.2f}")
            if follows_training(study, node):
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
                kept = (
                    "no update"
                    if whole.surviving is None
                    else f"{whole.surviving:.3f} of the update survives"
                )
                summary.append(f"{kept}, {whole.codes_changed:.2%} of codes changed")
            (place.output / FILE).write_text(json.dumps(found, indent=1, allow_nan=False))
            return StepReport(metadata={"summary": ", ".join(summary)})

        make_missing([split_input(study, "evaluation")] if scored else [], context, storage, gpu)
        manifest, cached = make(context, artifact, build, storage, gpu, config.rebuild)
        directory = storage.artifacts.root / relative_directory(artifact.asset)
        found = json.loads((directory / FILE).read_text())
        shown = {name: value for name, value in (found["survival"] or {}).items() if value is not None}
        if found["perplexity"]:
            shown["perplexity"] = _perplexity(found["perplexity"])
        if found["left_out"]:
            shown["left_out"] = dg.MetadataValue.json(found["left_out"])
        return result(manifest, cached, directory, **shown)

    return diagnostics


def _score(
    study: Study, settings: DiagnosticsSettings, place: Workplace, model: str, data: str
) -> dict[str, tuple[float, int]]:
    """Conversation -> (negative log-likelihood in nats, predicted tokens) of the first conversations."""
    from compression_assets.evaluation.perplexity import measure_perplexity
    from compression_assets.text.datasets import TokenDataset

    dataset = first_rows(TokenDataset.load(place.inputs[data]), settings.tokens)
    scored = measure_perplexity(
        place.inputs[model], dataset, study.evaluation.perplexity.batch_size, place.device, place.report
    )
    return dict(zip(scored.ids, zip(scored.nll, scored.tokens, strict=True), strict=True))


def first_rows(dataset: Any, tokens: int | None) -> Any:
    """The first rows of a TokenDataset that have at least so many predicted tokens; all of them for None."""
    if tokens is None:
        return dataset
    rows, seen = [], 0
    for row in dataset:
        if seen >= tokens:
            break
        rows.append(row)
        seen += row.n_predicted
    return type(dataset)(rows)


def _perplexity(items: dict[str, Any]) -> float:
    return math.exp(math.fsum(nll for nll, _ in items.values()) / sum(tokens for _, tokens in items.values()))


def _table(study: Study, nodes: list[Node]) -> dg.AssetsDefinition:
    orderings = [ordering for ordering in study.parsed_orderings if ordering.path]

    @dg.asset(
        key=STEP_DIAGNOSTICS,
        deps=[
            *map(diagnostics_key, nodes),
            *map(metrics_key, study.parsed_orderings),
            DATASETS["evaluation"],
        ],
        group_name="report",
        description="Every step of every ordering: perplexity before and after, and what a Q left of the training "
        f"before it. DuckDB tables {STEP_DIAGNOSTICS} and {LAYERS_TABLE}.",
        kinds={"duckdb"},
        tags={"stage": "report"},
        owners=OWNERS,
    )
    def step_diagnostics(context: dg.AssetExecutionContext, storage: StudyStorage) -> dg.MaterializeResult:
        with tracked(context, storage, STEP_DIAGNOSTICS), as_failure(STEP_DIAGNOSTICS):
            found = {node.key: one for node in nodes if (one := _read(storage, node)) is not None}
            scored = _perplexities(study, storage, found)
            rows = [row for one in orderings for row in _steps(study, one.text, one.path, scored, found)]
            layers = [
                {"model": key, **layer} for key, diagnosed in found.items() for layer in diagnosed["layers"]
            ]
            storage.database.write_table(STEP_DIAGNOSTICS, rows)
            storage.database.write_table(LAYERS_TABLE, layers)
        shown = [
            "ordering",
            "step",
            "technique",
            "perplexity_before",
            "perplexity_after",
            "codes_changed",
            "surviving",
        ]
        table = markdown(shown, [[row[name] for name in shown] for row in rows])
        absent = [node.key for node in nodes if node.key not in found]
        return dg.MaterializeResult(
            metadata={
                "rows": len(rows),
                "not_diagnosed": ", ".join(absent),
                "steps": dg.MetadataValue.md(table),
            }
        )

    return step_diagnostics


def _read(storage: StudyStorage, node: Node) -> dict[str, Any] | None:
    """None while the model has not been diagnosed: the table is read partly filled."""
    key = diagnostics_key(node)
    directory = storage.artifacts.root / relative_directory(key)
    if storage.artifacts.manifest(directory, key) is None:
        return None
    return dict(json.loads((directory / FILE).read_text()))


def _perplexities(
    study: Study, storage: StudyStorage, found: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Model -> items of its perplexity; D has those of the model that it dequantizes."""
    from compression_assets.text.datasets import TokenDataset

    assert study.evaluation.diagnostics is not None
    scored = {key: one["perplexity"] for key, one in found.items() if one["perplexity"]}
    measured = {
        ordering: directory
        for ordering in study.parsed_orderings
        if (directory := storage.artifacts.root / relative_directory(metrics_key(ordering))).exists()
    }
    data = TokenDataset.load(storage.artifacts.root / relative_directory(DATASETS["evaluation"]))
    wanted = {row.id for row in first_rows(data, study.evaluation.diagnostics.tokens)}
    for ordering, directory in measured.items():
        _, samples, _ = read_measured(directory)
        scored[study.nodes[ordering.path].key] = {
            sample.item: (sample.value, sample.weight)
            for sample in samples
            if sample.metric == "perplexity" and sample.item in wanted and sample.value is not None
        }
    for node in study.nodes.values():
        if node.technique == DEQUANTIZATION and node.parent is not None:
            before = study.nodes[node.parent].key
            if before in scored:
                scored[node.key] = scored[before]
    return scored


def _steps(
    study: Study, text: str, path: StepPath, scored: dict[str, Any], found: dict[str, dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    for length in range(1, len(path) + 1):
        node, parent = study.nodes[path[:length]], study.nodes[path[: length - 1]]
        items = {"before": scored.get(parent.key), "after": scored.get(node.key)}
        perplexity = {side: _perplexity(one) if one else None for side, one in items.items()}
        before, after = perplexity["before"], perplexity["after"]
        diagnosed = found.get(node.key, {})
        survival = diagnosed.get("survival") or {}
        left_out = diagnosed.get("left_out", {})
        yield {
            "ordering": text,
            "step": length,
            "model": node.key,
            "parent": parent.key,
            "token": node.step,
            "technique": node.technique,
            "perplexity_before": before,
            "perplexity_after": after,
            "log_change": math.log(after / before) if before and after else None,
            "tokens": sum(tokens for _, tokens in items["after"].values()) if items["after"] else None,
            "on_grid": diagnosed.get("on_grid"),
            **{
                name: survival.get(name)
                for name in (
                    *("codes_changed", "surviving", "predicted", "update_rms", "update_max", "half_bin"),
                    *("beyond", "weights"),
                )
            },
            "layers_compared": len(diagnosed["layers"]) if diagnosed.get("layers") else None,
            "layers_left_out": len(left_out) if survival else None,
            "note": f"{len(left_out)} layers left out: {next(iter(left_out.values()))}" if left_out else "",
        }
