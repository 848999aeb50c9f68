"""Small tables as text: for a terminal and for Markdown. No data access."""

from collections.abc import Sequence
from typing import Any

LONGEST = 200
"""Characters of a value that somebody else wrote, in a message."""


def shortened(value: Any) -> str:
    """A value as text of at most `LONGEST` characters: an image inside a message made a message of 3 MB."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def shown(value: Any) -> str:
    """A cell: three decimals for a number, '–' for what is not measured."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1e3 else f"{value:,.3f}"
    return str(value)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(shown(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def plain(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in columns of equal width; numbers to the right."""
    cells = [list(columns), *([shown(value) for value in row] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    numeric = [bool(rows) and all(_numeric(row[index]) for row in rows) for index in range(len(columns))]

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        ).rstrip()

    return "\n".join(
        [line(cells[0]), line(["─" * width for width in widths]), *(line(row) for row in cells[1:])]
    )


def _numeric(value: Any) -> bool:
    """Numbers, what is not measured, and text that starts with a number ("0.53 ±0.04")."""
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and value[:1].isdigit())
