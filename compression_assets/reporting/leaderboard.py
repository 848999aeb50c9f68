"""The leaderboard as people read it: what was measured, each figure with the half-width of its interval."""

from typing import Any

from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.tables import shown

PAPER = {
    "g_eval": "g_eval",
    "prompt_alignment": "prompt_alignment",
    "clarity": "clarity",
    "size_mib": "size_mib",
    "perplexity": "perplexity",
    "compression_ratio": "round((SELECT size_mib FROM paper_table_1 WHERE model = 'base') / size_mib, 3)",
}
"""Metric -> the expression for it over paper_table_1."""


UNTRUSTED = "UNTRUSTED"
"""How the note of a metric begins whose judge failed its own test."""


def read_leaderboard(
    database: MetricsDatabase, *, paper: bool = False
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows, in the study's order; metrics that no model has are left out, untrusted ones marked.

    paper: put the paper's figure (arXiv 2511.19495, Table 1) after each of ours that it has.
    Raises StudyError when nothing has been measured yet.
    """
    columns, found = database.query("SELECT * FROM leaderboard")
    records = [dict(zip(columns, row, strict=True)) for row in found]
    metrics = [
        name
        for name in columns
        if f"{name}_hi" in columns
        and any(record[name] is not None for record in records)
        # Said by the marks.
        and not name.endswith("_trusted")
    ]
    untrusted = {metric for metric in metrics if any(_doubt(record, metric) for record in records)}
    theirs = _paper(database) if paper else {}
    header, cells = ["ordering"], [[record["ordering"]] for record in records]
    for metric in metrics:
        header.append(f"{metric} †" if metric in untrusted else metric)
        for cell, record in zip(cells, records, strict=True):
            cell.append(with_half_width(*(record[metric + end] for end in ("", "_lo", "_hi"))))
        if theirs and metric in PAPER:
            header.append("paper")
            for cell, record in zip(cells, records, strict=True):
                cell.append(theirs.get(record["model"], {}).get(metric))
    return header, [tuple(cell) for cell in cells]


def doubts(database: MetricsDatabase) -> list[str]:
    """A sentence for each column that the leaderboard marks as untrusted."""
    columns, found = database.query("SELECT * FROM leaderboard")
    records = [dict(zip(columns, row, strict=True)) for row in found]
    metrics = [name for name in columns if f"{name}_hi" in columns]
    sentences = {
        metric: next(filter(None, (_doubt(record, metric) for record in records)), None) for metric in metrics
    }
    return [f"† {metric} is {sentence}" for metric, sentence in sentences.items() if sentence]


def _doubt(record: dict[str, Any], metric: str) -> str | None:
    """What the notes of a model say against a metric, as far as the judge is the reason."""
    _, found, rest = f"; {record['notes'] or ''}".partition(f"; {metric}: {UNTRUSTED}")
    return f"{UNTRUSTED}{rest.partition('; ')[0]}" if found else None


def _paper(database: MetricsDatabase) -> dict[str, dict[str, float]]:
    columns = ", ".join(f"{expression} AS {name}" for name, expression in PAPER.items())
    names, rows = database.query(f"SELECT model, {columns} FROM paper_table_1")
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def with_half_width(value: float | None, lo: float | None, hi: float | None) -> str | None:
    """A figure as it is printed: "0.531 ±0.042", or the value alone where there is no interval."""
    if value is None or lo is None or hi is None:
        return None if value is None else shown(value)
    return f"{shown(value)} ±{shown((hi - lo) / 2)}"
