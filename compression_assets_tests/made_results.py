"""Results of a study that was never run: figures, items and manifests as a test wants them."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from compression_assets.reporting.current import settings_of, source_settings
from compression_assets.reporting.read import Results, Row
from compression_assets.store.artifact_store import MANIFEST, Manifest
from compression_assets.study.leaderboard_models import leaderboard_models, parts
from compression_assets.study.model import Study
from compression_assets.study.names import model_key, relative_directory

PERPLEXITIES = {
    "base": 49.7,
    "kd": 35.0,
    "p": 89.0,
    "q": 62.6,
    "p_kd_q": 84.4,
    "kd_p_q": 98.4,
    "p_q_kd": 109.0,
}
SIZES = {"base": 256.6, "kd": 256.6, "p": 212.3, "q": 106.7}
SMALLEST = 95.27
PAPER = {
    "base": 3.418,
    "kd": 3.226,
    "p": 5.086,
    "q": 3.955,
    "p_kd_q": 5.048,
    "kd_p_q": 5.553,
    "p_q_kd": 5.597,
}


def metric_row(name: str, value: float | None, width: float | None = None, **more: Any) -> Row:
    """A row of metrics.<model>; width: half of its interval."""
    ends = (
        {"lo": None, "hi": None}
        if width is None or value is None
        else {"lo": value - width, "hi": value + width}
    )
    about = {"unit": "1", "n": 6000, "n_failed": 0, "note": "", "part": "metrics"}
    return {"metric": name, "value": value, **ends, **about, **more}


def made_results(study: Study, items: int = 1000, width: float = 0.1) -> Results:
    """Seven models with perplexity, size and ratio; every pair of perplexities told apart.

    items: conversations behind each perplexity. width: half of an interval of perplexity.
    """
    metrics = {}
    for model, perplexity in PERPLEXITIES.items():
        size = SIZES.get(model, SMALLEST)
        figures = {"size_mib": size, "tensor_mib": size - 0.1, "compression_ratio": SIZES["base"] / size}
        metrics[model] = {
            "perplexity": metric_row("perplexity", perplexity, width),
            **{name: metric_row(name, value, n=1) for name, value in figures.items()},
        }
    names = {model: model.upper().replace("_", "-") if model != "base" else model for model in metrics}
    paper = {
        model: {"model": model, "perplexity": value, "size_mib": {"base": 5886.0}.get(model, 1600.1)}
        for model, value in PAPER.items()
    }
    return Results(
        study=study,
        metrics=metrics,
        items={model: {"perplexity": items} for model in metrics},
        names=names,
        paper=paper,
        served={},
        engines={},
        comparisons=[pair("perplexity", one, other) for one, other in combinations(metrics, 2)],
        outdated={},
        damaged={},
        manifests={},
    )


def pair(name: str, one: str, other: str, better: str | None = None, **more: Any) -> Row:
    """A significant difference, in favour of `better` or of the first."""
    about = {"metric": name, "model_a": one, "model_b": other, "n": 60, "difference": -14.0, "p_holm": 0.0045}
    return about | {"significant": True, "better": better or one} | more


def with_metric(
    results: Results, name: str, values: dict[str, float], items: int = 0, **more: Any
) -> Results:
    """The same with one more metric for the models that have a value."""
    metrics = {
        model: {**rows, name: metric_row(name, values[model], **more)} if model in values else rows
        for model, rows in results.metrics.items()
    }
    counted = {
        model: {**counts, name: items} if items and model in values else counts
        for model, counts in results.items.items()
    }
    return replace(results, metrics=metrics, items=counted)


def made_manifests(study: Study) -> dict[str, Manifest]:
    """Of every model and measurement of a study, as if all had been made just now."""
    found: dict[str, Manifest] = {}

    def add(asset: str, recipe: Any, inputs: list[str], **more: Any) -> None:
        directory = str(relative_directory(asset))
        found[directory] = Manifest(
            asset=asset,
            fingerprint="f",
            data_version=f"content of {directory}",
            files={},
            created_at="2026-01-01",
            recipe=recipe,
            inputs={source: f"content of {source}" for source in inputs},
            **more,
        )

    sources = source_settings(study)
    for node in study.nodes.values():
        if node.parent is None or node.step is None:
            add(model_key(node), sources.get(str(relative_directory(model_key(node))), {}), [])
            continue
        parent = str(relative_directory(model_key(study.nodes[node.parent])))
        recipe = study.recipe(node.step).model_dump(mode="json")
        add(model_key(node), recipe, [parent], technique=node.step, seed=study.seed)
    for model in leaderboard_models(study):
        for part in parts(study):
            add(model.asset(part), {}, [str(relative_directory(model.model))])
    return found


def as_if_made_by(study: Study, root: Path) -> None:
    """Let the manifests of a storage say that this study's recipes and settings made what is there."""
    settings = settings_of(study)
    recipes = source_settings(study) | {
        str(relative_directory(model_key(node))): study.recipe(node.step).model_dump(mode="json")
        for node in study.nodes.values()
        if node.step
    }
    for file in root.glob(f"*/*/{MANIFEST}"):
        content = json.loads(file.read_text())
        directory = str(file.parent.relative_to(root))
        known = {name: settings[name] for name in settings.keys() & content["recipe"].keys()}
        content["recipe"] = recipes.get(directory, content["recipe"] | known)
        file.write_text(json.dumps(content))
