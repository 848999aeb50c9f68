"""Sections about how models were made: loss curves, per-layer errors, lineage, costs, settings."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import yaml

from compression_assets.reporting.answer import answer_or_why_not
from compression_assets.reporting.parts import Cell, Section, Table, drawn, head, number
from compression_assets.reporting.read import ReportData
from compression_assets.reporting.training_charts import bars, lines
from compression_assets.store.artifact_store import Manifest

MIB = 2**20
_LAYER = re.compile(r"layers\.(\d+)\.")


def loss_curves(data: ReportData) -> Section:
    """The curves in the manifests, a panel a technique."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    rows = []
    for name, manifest in _models(data):
        curve = manifest.metadata.get("loss_curve")
        if not curve:
            continue
        panel = f"{manifest.technique or 'teacher'}: training loss"
        panels.setdefault(panel, {})[name] = [(row["step"], row["loss"]) for row in curve]
        rows.append(
            [
                head(name),
                number(float(len(curve)), f"{name}.steps"),
                number(float(manifest.tokens_seen), f"{name}.tokens"),
                number(curve[0]["loss"], f"{name}.first_loss"),
                number(curve[-1]["loss"], f"{name}.last_loss"),
            ]
        )
    if not panels:
        return Section("loss", "Loss curves", missing="No model of this study has been trained yet.")
    table = Table(
        "Recorded optimiser steps, predicted tokens trained on, loss at the first and last recorded step.",
        ["model", "recorded steps", "tokens", "first loss", "last loss"],
        rows,
    )
    chart = drawn(
        "loss",
        lines,
        panels,
        "optimiser step",
        dict.fromkeys(panels, "loss (nats a token)"),
        caption="Training loss over optimiser steps; each point is one batch (n in the table). KD's loss mixes "
        "cross-entropy and the divergence from the teacher, so panels cannot be compared with each other.",
        data=table,
    )
    return Section("loss", "Loss curves", charts=[chart])


def layer_errors(data: ReportData) -> Section:
    """Pruned importance and quantization error by decoder layer."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    labels = {}
    rows = []
    for name, manifest in _models(data):
        layers = manifest.metadata.get("layers") or []
        for key, panel, label in (
            ("importance_removed", "pruning", "share of importance removed"),
            ("relative_error", "quantization", "relative error of weights"),
        ):
            curve = by_layer(layers, key)
            if curve:
                panels.setdefault(panel, {})[name] = curve
                labels[panel] = label
                values = [value for _, value in curve]
                rows.append(
                    [
                        head(name),
                        Cell(label),
                        number(fmean(values), f"{name}.{key}.mean"),
                        number(max(values), f"{name}.{key}.max"),
                        number(float(len(values)), f"{name}.{key}.n"),
                    ]
                )
    if not panels:
        return Section(
            "layers",
            "Pruning and quantization, layer by layer",
            missing="No model has been pruned or quantized yet.",
        )
    table = Table(
        "Mean and largest value over decoder layers.",
        ["model", "what", "mean", "largest", "layers (n)"],
        rows,
    )
    chart = drawn(
        "layers",
        lines,
        panels,
        "decoder layer",
        labels,
        caption="Share of importance that pruning removed, and relative error ‖W − Q(W)‖ / ‖W‖ of quantization "
        "(mean over a layer's linear weights), by decoder layer; dimensionless.",
        data=table,
    )
    return Section("layers", "Pruning and quantization, layer by layer", charts=[chart])


def by_layer(layers: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(decoder layer, mean of `key` over its entries), for entries that name their layer, by number or by path."""
    values: dict[int, list[float]] = {}
    for entry in layers:
        place = entry.get("layer")
        if entry.get(key) is None or place is None:
            continue
        if isinstance(place, str):
            match = _LAYER.search(place)
            if match is None:
                continue
            place = int(match[1])
        values.setdefault(int(place), []).append(entry[key])
    return [(float(place), fmean(found)) for place, found in sorted(values.items())]


def lineage(data: ReportData) -> Section:
    """Every step on the way to the best model."""
    answer = answer_or_why_not(data)
    best = None if isinstance(answer, str) else answer.choice.model
    ordering = next((known for known in data.study.parsed_orderings if known.key == best), None)
    if ordering is None:
        return Section(
            "lineage", "Where the best model comes from", missing="No model has been measured yet."
        )
    rows = []
    for length in range(len(ordering.path) + 1):
        node = data.study.nodes[ordering.path[:length]]
        manifest = data.node_manifest(node)
        if manifest is None:
            continue
        rows.append(
            [
                head(manifest.asset),
                Cell(node.step or "–"),
                Cell(_recipe(manifest)),
                number(float(manifest.tokens_seen), f"{node.key}.tokens"),
                number(manifest.seconds, f"{node.key}.seconds"),
                Cell(str(manifest.seed if manifest.seed is not None else "–")),
                Cell(manifest.created_at),
                Cell(manifest.data_version[:12]),
            ]
        )
    columns = ["asset", "step", "recipe", "tokens", "seconds", "seed", "made at", "content (sha256)"]
    table = Table(f"The steps to {ordering.text}, in order.", columns, rows, key="lineage")
    intro = (
        f"{ordering.text}: the model that the study's goal picks. "
        "Its directory holds a manifest with everything that is abbreviated here."
    )
    return Section("lineage", "Where the best model comes from", intro=intro, tables=[table])


def _recipe(manifest: Manifest) -> str:
    shown = {
        key: value
        for key, value in manifest.recipe.items()
        if isinstance(value, str | int | float) and key != "sha256"
    }
    chosen = manifest.metadata.get("summary")
    return (
        ", ".join([*(f"{key} {value}" for key, value in shown.items()), *([str(chosen)] if chosen else [])])
        or "–"
    )


def costs(data: ReportData) -> Section:
    """Seconds, peak memory and bytes on disk of everything that was made."""
    made = [(directory, manifest) for directory, manifest in data.manifests.items()]
    if not made:
        return Section("costs", "Time, memory and disk", missing="Nothing has been made yet.")
    rows = [
        [
            head(manifest.asset),
            Cell(directory.split("/")[0] if not manifest.technique else manifest.technique),
            number(manifest.seconds, f"{directory}.seconds"),
            number(manifest.peak_memory_bytes / MIB, f"{directory}.peak_memory_mib", 4),
            number(manifest.total_bytes / MIB, f"{directory}.disk_mib", 4),
            Cell(manifest.device or "–"),
        ]
        for directory, manifest in made
    ]
    models = _models(data)
    total = sum(manifest.seconds for _, manifest in made)
    disk = sum(manifest.total_bytes for _, manifest in made)
    chart = drawn(
        "costs",
        bars,
        [name for name, _ in models],
        [(manifest.technique or "no step").split(":")[0] for _, manifest in models],
        {
            "seconds": [manifest.seconds for _, manifest in models],
            "peak memory (MiB)": [manifest.peak_memory_bytes / MIB for _, manifest in models],
            "disk (MiB)": [manifest.total_bytes / MIB for _, manifest in models],
        },
        caption=f"Seconds, peak memory of the process and disk of each model (n = 1 run each). All {len(made)} "
        f"artifacts together: {total:,.0f} s and {disk / MIB:,.0f} MiB.",
        data=Table(
            "Every artifact. Memory is the peak of its process, which may have made others before it.",
            ["asset", "kind", "seconds", "peak memory (MiB)", "disk (MiB)", "device"],
            rows,
        ),
    )
    return Section("costs", "Time, memory and disk", charts=[chart])


def settings(data: ReportData) -> Section:
    """The study file with every default written out."""
    text = yaml.safe_dump(
        data.study.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True, width=100
    )
    return Section(
        "settings", "Every setting", intro="The study as it was read, defaults included.", listing=text
    )


def _models(data: ReportData) -> list[tuple[str, Manifest]]:
    """(name of the directory, manifest) of every model, in the order of the prefix tree; the teacher last."""
    found = [
        (node.key, manifest)
        for node in data.study.nodes.values()
        if (manifest := data.node_manifest(node)) is not None
    ]
    teacher = data.manifests.get("models/teacher")
    return [*found, ("teacher", teacher)] if teacher else found
