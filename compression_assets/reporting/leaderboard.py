"""The leaderboard as text: a short table for a terminal, all of it by group, as CSV and as JSON."""

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from compression_assets.errors import next_command
from compression_assets.evaluation.metrics import ANSWERS, GROUPS, JUDGE, JUDGED, in_order, metric
from compression_assets.reporting.judged_by import introduced
from compression_assets.reporting.read import Results
from compression_assets.reporting.serving import not_faster, served_table
from compression_assets.tables import bracketed, decimals, fixed, plain

SHORT = ("perplexity", "size_mib", "compression_ratio")
DAGGER = " †"
WIDTH = 100
"""Columns of a terminal that the leaderboard keeps to."""


def leaderboard_text(results: Results, *, everything: bool = False) -> str:
    """At most 100 columns: perplexity, size, ratio, one figure about answers, and whether its judge is trusted.

    everything: all metrics, a table a group. Below it, what is not to be trusted and what was left out.
    """
    if everything:
        tables = [table(results, names) for names in by_group(results)]
        parts = ["\n\n".join(plain(*one) for one in tables)]
    else:
        names = [name for name in SHORT if name in results.measured]
        columns, rows = table(results, [*names, *_about_answers(results)])
        if judged := _judge_column(results):
            columns, rows = [*columns, "judge"], [[*row, judged] for row in rows]
        parts = [plain(columns, rows)]
    served = served_table(results)
    if served is not None:
        cells = [[f"{cell.text} {cell.below}".strip() for cell in row] for row in served.written]
        parts += ["", plain(served.columns, cells)]
    about = [served.caption, *not_faster(results)] if served else []
    said = [
        line
        for remark in [*about, *remarks(results)]
        for line in textwrap.wrap(remark, WIDTH, subsequent_indent="  ")
    ]
    return "\n".join([*parts, *said])


def table(results: Results, names: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows, in the study's order: each figure with both ends of its interval, untrusted ones marked."""
    columns = ["model", *(title(results, name) for name in names)]
    cells = [column(results, name) for name in names]
    return columns, [
        [results.name(model), *(one[place] for one in cells)] for place, model in enumerate(results.models)
    ]


def column(results: Results, name: str) -> list[str | None]:
    """A metric of all models with even digits; None where it is not measured."""
    values = [results.value(model, name) for model in results.models]
    places = places_of(results, name, results.models)
    return [
        None if value is None else with_interval(value, results.interval(model, name), places)
        for model, value in zip(results.models, values, strict=True)
    ]


def places_of(results: Results, name: str, models: Sequence[str]) -> int:
    """Decimals with which a metric of these models is written."""
    ends = [end for model in models for end in results.interval(model, name) or ()]
    return decimals([results.value(model, name) for model in models], metric(name).digits, ends)


def with_interval(value: float, interval: tuple[float, float] | None, places: int) -> str:
    """A figure as it is printed: "84.4 [72.0, 98.2]", or the value alone where there is no interval."""
    return fixed(value, places) + (f" {bracketed(interval, places)}" if interval else "")


def title(results: Results, name: str) -> str:
    """What a metric is called, with its unit and its mark."""
    return results.metric(name).label + (DAGGER if name in results.untrusted else "")


def by_group(results: Results) -> list[list[str]]:
    """Metrics that some model has, a list a group; figures about the judge itself are left to its own table."""
    measured = in_order(results.measured)
    groups = [
        [name for name in measured if metric(name).group == group] for group in GROUPS if group != JUDGE
    ]
    return [names for names in groups if names]


def remarks(results: Results) -> list[str]:
    """What to know of the figures: who judged, what is not to be trusted or only in part, and what was left out."""
    return [*_about_judged(results), *left_out(results)]


def left_out(results: Results) -> list[str]:
    """A sentence for each model whose figures are of an earlier state of the study."""
    return [
        f"{results.study.name} has earlier figures of {model}, which are left out: {why}; "
        f"run: {next_command('run')}"
        for model, why in results.outdated.items()
    ]


def _about_judged(results: Results) -> list[str]:
    who = introduced(results.judge, results.study.evaluation.judge)
    judged = [f"judge: {who}"] if who else []
    untrusted = [f"† {results.metric(name).title} is {note}" for name, note in results.untrusted.items()]
    weak = [f"{results.metric(name).title}: its judge is {note}" for name, note in results.weaknesses.items()]
    return [*judged, *untrusted, *weak]


def leaderboard_csv(results: Results) -> str:
    """Every metric of every model with lo, hi, n and note, in full precision, as CSV; models as served come last."""
    figures_of = {**results.metrics, **results.served}
    names = in_order(
        {name for rows in figures_of.values() for name, row in rows.items() if row["value"] is not None}
    )
    keys = ("value", "lo", "hi", "n", "note")
    ends = ("", "_lo", "_hi", "_n", "_note")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "ordering", *(name + end for name in names for end in ends)])
    for model, known in figures_of.items():
        figures = [known.get(name, {}).get(key) for name in names for key in keys]
        writer.writerow([model, results.name(model), *figures])
    return text.getvalue().rstrip("\n")


def leaderboard_json(results: Results) -> str:
    """A list of models, those as served last, each with its metrics: value, lo, hi, n, n_failed, unit, note; the judge;
    what was left out."""
    kept = ("value", "lo", "hi", "n", "n_failed", "unit", "note")
    models = [
        {
            "model": model,
            "ordering": results.name(model),
            "metrics": {name: {key: rows[name].get(key) for key in kept} for name in in_order(set(rows))},
        }
        for model, rows in {**results.metrics, **results.served}.items()
    ]
    return json.dumps(
        {"models": models, "judge": results.judge, "left_out": results.outdated}, indent=1, allow_nan=False
    )


def _about_answers(results: Results) -> list[str]:
    """The one figure about answers that says most: judged and trusted, else against the right answers, else judged."""
    found = [name for name in in_order(results.measured) if metric(name).group in (JUDGED, ANSWERS)]
    trusted = [name for name in found if metric(name).group == JUDGED and name not in results.untrusted]
    preferred = [*trusted, "f1", *(name for name in found if metric(name).group == JUDGED)]
    return [name for name in preferred if name in found][:1]


def _judge_column(results: Results) -> str:
    judged = {name for name in results.measured if metric(name).group == JUDGED}
    if not judged:
        return ""
    failed = judged & results.untrusted.keys()
    return "trusted" if not failed else "NOT trusted" if failed == judged else "trusted in part"
