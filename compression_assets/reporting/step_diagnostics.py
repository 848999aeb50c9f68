"""The tables step_diagnostics and layer_diagnostics: every step of every ordering, from what was measured of models."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compression_assets.evaluation.measured import read_measured
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.store.tables import write_table
from compression_assets.study.diagnosed import diagnosed
from compression_assets.study.model import Study
from compression_assets.study.names import (
    DATASETS,
    STEP_DIAGNOSTICS,
    diagnostics_key,
    metrics_key,
    relative_directory,
)
from compression_assets.study.orderings import DEQUANTIZATION, Node, StepPath

FILE = "diagnostics.json"
LAYERS_TABLE = "layer_diagnostics"


def read_diagnostics(directory: Path) -> dict[str, Any]:
    """What a diagnostics artifact found of one model."""
    return dict(json.loads((directory / FILE).read_text()))


def write_step_diagnostics(study: Study, store: ArtifactStore) -> tuple[list[dict[str, Any]], list[str]]:
    """Write both tables: (rows of step_diagnostics, keys of models that have not been diagnosed yet)."""
    nodes = diagnosed(study)
    found = {node.key: one for node in nodes if (one := _read(store, node)) is not None}
    scored = _perplexities(study, store, found)
    orderings = [ordering for ordering in study.parsed_orderings if ordering.path]
    rows = [row for one in orderings for row in _steps(study, one.text, one.path, scored, found)]
    layers = [{"model": key, **layer} for key, one in found.items() for layer in one["layers"]]
    write_table(store.root, STEP_DIAGNOSTICS, rows)
    write_table(store.root, LAYERS_TABLE, layers)
    return rows, [node.key for node in nodes if node.key not in found]


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


def perplexity(items: dict[str, Any]) -> float:
    """Of the items of `diagnostics.json`: (negative log-likelihood in nats, predicted tokens) by conversation."""
    return math.exp(math.fsum(nll for nll, _ in items.values()) / sum(tokens for _, tokens in items.values()))


def _read(store: ArtifactStore, node: Node) -> dict[str, Any] | None:
    """None while the model has not been diagnosed: the table is read partly filled."""
    key = diagnostics_key(node)
    directory = store.local(store.root / relative_directory(key), key)
    return None if directory is None else read_diagnostics(directory)


def _perplexities(
    study: Study, store: ArtifactStore, found: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Model -> items of its perplexity; D has those of the model that it dequantizes."""
    from compression_assets.text.datasets import TokenDataset

    assert study.evaluation.diagnostics is not None
    scored = {key: one["perplexity"] for key, one in found.items() if one["perplexity"]}
    measured = {
        ordering: directory
        for ordering in study.parsed_orderings
        for key in [metrics_key(ordering)]
        if (directory := store.local(store.root / relative_directory(key), key))
    }
    evaluation = DATASETS["evaluation"]
    data = TokenDataset.load(
        store.needed(store.root / relative_directory(evaluation), evaluation, STEP_DIAGNOSTICS)
    )
    wanted = {row.id for row in first_rows(data, study.evaluation.diagnostics.tokens)}
    for ordering, directory in measured.items():
        _, samples = read_measured(directory)
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
        by_side = {side: perplexity(one) if one else None for side, one in items.items()}
        before, after = by_side["before"], by_side["after"]
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
            "tokens": round(sum(tokens for _, tokens in items["after"].values())) if items["after"] else None,
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
