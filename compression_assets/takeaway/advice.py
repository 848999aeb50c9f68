"""The recommendation as people read it: the models as a table, the choice, and how to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compression_assets.errors import next_command
from compression_assets.evaluation.metrics import JUDGED, metric
from compression_assets.reporting.choosing import PERPLEXITY, SIZE, Choice, Limits, choose, size_of
from compression_assets.reporting.judged_by import introduced
from compression_assets.reporting.read import Results, read_results
from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.study.model import Study
from compression_assets.tables import markdown, plain

SHOWN = ("size_mib", "compression_ratio", "perplexity")


def advise(
    study: Study, root: Path, database: MetricsDatabase, limits: Limits
) -> tuple[Choice, Limits, Results]:
    """The choice, the limits that it was made under, and what it was made of.

    limits: those of the study's goal where none is given. root: storage/<study>.
    """
    results = read_results(study, root, database)
    limits = limits if limits.metrics else Limits.of(study.goal)
    return choose(results.rows, limits, study.goal.best), limits, results


def table(choice: Choice, limits: Limits, results: Results) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Columns, and a row a model from small to large: what the limits name is among the columns."""
    shown = list(dict.fromkeys((*SHOWN, results.study.goal.best, *limits.metrics)))
    marks = {name: f"{name} †" if name in results.untrusted else name for name in shown}
    known = [row for row in results.rows if row.get("size_mib") is not None]
    rows = [
        (
            row["model"],
            row["ordering"],
            *(row.get(name) for name in shown),
            "yes" if row["model"] in choice.front else "",
            "" if limits.misses(row) else "yes",
        )
        for row in sorted(known, key=size_of)
    ]
    return ["model", "ordering", *marks.values(), "on the front", "within limits"], rows


def doubts(limits: Limits, results: Results) -> list[str]:
    """Who judged what decides, and a sentence for each metric that decides and that an untrusted judge scored."""
    named = dict.fromkeys((results.study.goal.best, *limits.metrics))
    untrusted = results.untrusted
    judged = any(metric(name).group == JUDGED for name in named)
    who = introduced(results.judge, results.study.evaluation.judge) if judged else ""
    return [f"judge: {who}"] * bool(who) + [
        f"† {name} is {untrusted[name]}: no model should be taken by it"
        for name in named
        if name in untrusted
    ]


def how_to_take(model: str, directory: Path) -> list[str]:
    """Commands and code for one model of the study at hand."""
    export = next_command("export", model, "--format", "hf")
    lines = [
        f"directory: {directory}",
        f"load:      AutoModelForCausalLM.from_pretrained({str(directory)!r})",
        f"export:    {export}    (or: --format gguf)",
    ]
    if model != "base":
        lines.append(f"make it:   {next_command('run', '--select', f'*final_{model}')}")
    return lines


def left_out(reasons: Mapping[str, str]) -> list[str]:
    """A sentence for each thing that is left out. reasons: what -> why."""
    return [f"left out: {what} ({why}); run: {next_command('run')}" for what, why in reasons.items()]


def served_too(choice: Choice, limits: Limits, results: Results) -> list[str]:
    """Models as engines serve them are no candidates: a sentence names those within the limits that beat the choice."""
    found = []
    for key, rows in results.served.items():
        row = {name: one["value"] for name, one in rows.items() if one["value"] is not None}
        if {SIZE, PERPLEXITY} <= row.keys() and not limits.misses(row) and _beats(row, choice.model, results):
            found.append(f"{results.name(key)} ({row[SIZE]:,.4g} MiB, perplexity {row[PERPLEXITY]:.4g})")
    if not found:
        return []
    what = "smaller and better in perplexity" if choice.model else "within these limits"
    return [f"Served by an engine and not by transformers, so no candidates, but {what}: {', '.join(found)}."]


def _beats(row: Mapping[str, Any], model: str | None, results: Results) -> bool:
    if model is None:
        return True
    size, perplexity = (results.value(model, name) for name in (SIZE, PERPLEXITY))
    return size is not None and row[SIZE] <= size and perplexity is not None and row[PERPLEXITY] < perplexity


def as_text(choice: Choice, limits: Limits, results: Results, models: Path) -> str:
    """The table, the choice, and how to take it. models: directory of the study's models.

    What cannot be read is not among it: whoever opens the database says so.
    """
    lines = [
        plain(*table(choice, limits, results)),
        "",
        choice.why,
        *served_too(choice, limits, results),
        *doubts(limits, results),
        *left_out(results.outdated),
    ]
    if choice.model is not None:
        lines += how_to_take(choice.model, models / choice.model)
        manifest = results.manifests.get(f"{models.name}/{choice.model}")
        if manifest is not None and (reason := manifest.metadata.get("answers_on_reason")):
            others = (
                " or ".join(manifest.metadata.get("answers_on", ())) or "no device that transformers runs on"
            )
            lines.append(f"note:      it answers on {others} only: {reason}")
    return "\n".join(lines)


def as_markdown(choice: Choice, limits: Limits, results: Results) -> str:
    sentences = [
        choice.why,
        *served_too(choice, limits, results),
        *doubts(limits, results),
        *left_out({**results.outdated, **results.damaged}),
    ]
    return "\n\n".join([markdown(*table(choice, limits, results)), *sentences])
