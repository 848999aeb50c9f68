"""Numbers and small tables as text: for a terminal, for Markdown and for the page. No data access."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

MOST_DECIMALS = 8
LONGEST = 200
"""Characters of a value that somebody else wrote, in a message."""


def shortened(value: Any) -> str:
    """A value as text of at most `LONGEST` characters: an image inside a message made a message of 3 MB."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def significant(value: float, digits: int = 3) -> str:
    """A number with that many significant digits; whole numbers as they are, powers of ten only below 0.0001."""
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer():
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def decimals(values: Iterable[float | None], digits: int = 3, ends: Iterable[float] = ()) -> int:
    """Decimals for numbers of one column: those that give the middle one `digits` significant digits.

    None for whole numbers. ends: of their intervals, which have the same decimals.
    """
    known = sorted(abs(value) for value in values if value and math.isfinite(value))
    if not known or all(float(value).is_integer() for value in (*known, *ends)):
        return 0
    middle = known[(len(known) - 1) // 2]
    return min(MOST_DECIMALS, max(0, digits - 1 - math.floor(math.log10(middle))))


def fixed(value: float, places: int) -> str:
    """A number with so many decimals; one that would be written as 0 has two significant digits instead."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return f"{0:.{places}f}"  # never "-0"
    text = f"{value:,.{places}f}"
    return significant(value, 2) if not text.strip("-0.,") else text


def bracketed(interval: tuple[float, float], places: int) -> str:
    """An interval as it is printed, with its two ends: "[72.0, 98.2]"."""
    return f"[{fixed(interval[0], places)}, {fixed(interval[1], places)}]"


def shown(value: Any) -> str:
    """A cell by itself: four significant digits for a number, '–' for what is not measured."""
    if value is None:
        return "–"
    return significant(value, 4) if isinstance(value, float) else str(value)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; columns of numbers to the right, with even digits."""
    numeric = _numeric_columns(columns, rows)
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|" + "|".join(" ---: " if right else " --- " for right in numeric) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in _cells(columns, rows)]
    return "\n".join(lines)


def plain(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in columns of equal width; numbers to the right, with even digits."""
    cells = [list(columns), *_cells(columns, rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    numeric = _numeric_columns(columns, rows)

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        ).rstrip()

    return "\n".join(
        [line(cells[0]), line(["─" * width for width in widths]), *(line(row) for row in cells[1:])]
    )


def _cells(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    places = [
        decimals((row[index] for row in rows if isinstance(row[index], float)), 4)
        for index in range(len(columns))
    ]
    return [
        [
            fixed(value, place) if isinstance(value, float) else shown(value)
            for value, place in zip(row, places, strict=True)
        ]
        for row in rows
    ]


def _numeric_columns(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[bool]:
    return [bool(rows) and all(_numeric(row[index]) for row in rows) for index in range(len(columns))]


def _numeric(value: Any) -> bool:
    """Numbers, what is not measured, and text that starts with a number ("0.53 [0.49, 0.57]")."""
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and value[:1].isdigit())
