"""The model card of an exported model, written from its lineage and its metrics. No files are read in here."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from compression_assets.evaluation.judging.settings import JudgeSettings
from compression_assets.evaluation.metrics import SPEED, in_order, metric
from compression_assets.reporting.judged_by import introduced, judge_of, shown_metric, weaknesses
from compression_assets.reporting.parts import Table
from compression_assets.reporting.read import is_untrusted
from compression_assets.tables import markdown, shown

Lineage = Sequence[Mapping[str, Any]]


def model_card(
    model: str,
    ordering: str,
    study: str,
    about: Mapping[str, Any],
    lineage: Lineage,
    metrics: Lineage,
    confidence: str = "95 %",
    judge: JudgeSettings | None = None,
    served: Table | None = None,
    library: str = "transformers",
) -> str:
    """README.md with the front matter of a hub's model card (huggingface.co/docs/hub/model-cards).

    about: of the base model: origin, license, notes. lineage: manifests' fields from the base on, one a step.
    metrics: rows of the table metrics.<model>. confidence: of their intervals. judge: that of the study.
    served: what it does in engines. library: by the hub's name, what reads the files.
    """
    front = [
        "---",
        *_license(str(about.get("license", "not stated"))),
        *([f"base_model: {json.dumps(base)}"] if (base := _hub_name(about)) else []),
        f"library_name: {library}",
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
            _metrics(metrics, confidence, judge),
            "",
            *(["## In engines", "", *_served(served), ""] if served else []),
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


def _hub_name(about: Mapping[str, Any]) -> str | None:
    """`owner/name` of a base model that a hub has; a hub refuses any other in the front matter."""
    return str(about["origin"]).partition("@")[0] if about.get("kind") == "hub" else None


def _steps(lineage: Lineage) -> list[str]:
    return [str(step["technique"] or "base") for step in lineage]


def _license(stated: str) -> list[str]:
    """Identifiers stand as they are; what somebody wrote in words is a name that the hub shows."""
    if re.fullmatch(r"[A-Za-z0-9.+-]+", stated):
        return [f"license: {stated.lower()}"]
    return ["license: other", *([f"license_name: {json.dumps(stated)}"] if stated != "not stated" else [])]


def _metrics(metrics: Lineage, confidence: str, judge: JudgeSettings | None) -> str:
    """A table, and below it who judged and why some rows are not to be trusted. Numbers have different units."""
    known = {row["metric"]: row for row in metrics if row["value"] is not None}
    if not known:
        return "Nothing yet."
    names = in_order(set(known))
    titles = {name: shown_metric(name, judge).title for name in names}
    groups = {metric(name).group for name in names}
    doubted = [name for name in names if is_untrusted(known[name])]
    rows = [
        (
            titles[name] + (" †" if name in doubted else ""),
            shown(known[name]["value"]),
            _interval(known[name]),
            known[name]["unit"],
            known[name]["n"],
        )
        for name in names
    ]
    table = markdown(("metric", "value", f"{confidence} interval", "unit", "n"), rows)
    who = introduced(judge_of(known), judge)
    remarks = [
        *([f"Judge: {who}."] if who else []),
        *(["Of speed: the slowest and the fastest run instead of an interval."] if SPEED in groups else []),
        *(
            f"{titles[name]}: {known[name]['note']}."
            for name in names
            if metric(name).group == SPEED and known[name]["note"]
        ),
        *(f"† {titles[name]} is {known[name]['note']}." for name in doubted),
        *(f"{titles[name]}: its judge is {note}." for name, note in weaknesses(known).items()),
    ]
    return "\n\n".join([table, *remarks])


def _served(table: Table) -> list[str]:
    rows = [[f"{cell.text} {cell.below}".strip() for cell in row] for row in table.written]
    return [markdown(table.full_columns, rows), "", table.caption]


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
