"""The model card of an exported model, written from its lineage and its metrics. No files are read in here."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from compression_assets.tables import markdown, shown

Lineage = Sequence[Mapping[str, Any]]


def model_card(
    model: str, ordering: str, study: str, about: Mapping[str, Any], lineage: Lineage, metrics: Lineage
) -> str:
    """README.md with front matter.

    about: of the base model: origin, license, notes. lineage: manifests' fields from the base on, one a step.
    metrics: rows of the table metrics.<model>.
    """
    licence = str(about.get("license", "not stated")).lower()
    front = [
        "---",
        f"license: {licence if licence != 'not stated' else 'other'}",
        f"base_model: {json.dumps(about.get('origin', 'unknown'))}",
        "library_name: transformers",
        "tags: [compression, pruning, distillation, quantization]",
        "---",
    ]
    return "\n".join(
        [
            *front,
            f"# {model}: {ordering} of {about.get('origin', 'an unnamed model')}",
            "",
            f"Made by compression_assets in the study `{study}`. Steps: {' → '.join(_steps(lineage))}.",
            "",
            "## Measured",
            "",
            _metrics(metrics),
            "",
            "## How it was made",
            "",
            _lineage(lineage),
            "",
            "Recipes:",
            "",
            *_recipes(lineage),
            "",
            "## Limits",
            "",
            f"The base model's licence ({about.get('license', 'not stated')}) applies to this one as well. It was "
            "trained and measured on one set of chats; what it does beyond them was not looked at.",
            "",
        ]
    )


def _steps(lineage: Lineage) -> list[str]:
    return [str(step["technique"] or "base") for step in lineage]


def _metrics(metrics: Lineage) -> str:
    rows = [
        (row["metric"], row["value"], _interval(row), row["unit"], row["n"])
        for row in metrics
        if row["value"] is not None
    ]
    return markdown(("metric", "value", "95 % interval", "unit", "n"), rows) if rows else "Nothing yet."


def _interval(row: Mapping[str, Any]) -> str:
    if row.get("lo") is None or row.get("hi") is None:
        return "–"
    return f"{shown(row['lo'])} to {shown(row['hi'])}"


def _lineage(lineage: Lineage) -> str:
    columns = ("model", "step", "seed", "tokens seen", "seconds", "device", "content (sha256)")
    rows = [
        (
            step["asset"],
            step["technique"] or "–",
            step["seed"],
            step["tokens_seen"],
            round(step["seconds"], 1),
            step["device"],
            step["data_version"][:16],
        )
        for step in lineage
    ]
    return markdown(columns, rows)


def _recipes(lineage: Lineage) -> list[str]:
    return [
        f"- {step['technique']}: `{json.dumps(step['recipe'], sort_keys=True)}`"
        for step in lineage
        if step["technique"]
    ]
