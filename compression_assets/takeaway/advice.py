"""The recommendation as people read it: the front as a table, the choice, and how to load it."""

from pathlib import Path
from typing import Any

from compression_assets.errors import next_command
from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.tables import markdown, plain
from compression_assets.takeaway.recommend import QUALITY, SIZE, Choice, Limits, Row, recommend

COLUMNS = ("model", "ordering", SIZE, "compression_ratio", QUALITY, "f1", "on the front", "within limits")


def advise(database: MetricsDatabase, limits: Limits) -> tuple[Choice, list[dict[str, Any]]]:
    """The choice, and the rows that it was made of."""
    columns, values = database.query("SELECT * FROM leaderboard")
    rows = [dict(zip(columns, row, strict=True)) for row in values]
    return recommend(rows, limits), rows


def table(choice: Choice, rows: list[dict[str, Any]], limits: Limits) -> list[tuple[Any, ...]]:
    """A row a model, from small to large, in the order of COLUMNS."""
    measured = [row for row in rows if row[SIZE] is not None]
    return [_shown(choice, row, limits) for row in sorted(measured, key=lambda row: row[SIZE])]


def _shown(choice: Choice, row: Row, limits: Limits) -> tuple[Any, ...]:
    values = tuple(row.get(name) for name in COLUMNS[:-2])
    return (*values, "yes" if row["model"] in choice.front else "", "" if limits.misses(row) else "yes")


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


def as_text(choice: Choice, rows: list[dict[str, Any]], limits: Limits, models: Path) -> str:
    """The table, the choice, and how to take it. models: directory of the study's models."""
    lines = [plain(COLUMNS, table(choice, rows, limits)), "", choice.why]
    if choice.model is not None:
        lines += how_to_take(choice.model, models / choice.model)
    return "\n".join(lines)


def as_markdown(choice: Choice, rows: list[dict[str, Any]], limits: Limits) -> str:
    return markdown(COLUMNS, table(choice, rows, limits)) + f"\n\n{choice.why}"
