"""What a page is made of: sections, charts and tables. No data and no HTML in here."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from compression_assets.reporting.svg import chart_style, to_svg
from compression_assets.tables import bracketed, decimals, fixed

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    text: what is shown; of a number it is written by its table, with the decimals of its column. key, value: what a
    number is and exactly, for whoever checks it. interval: shown below a number. mark: shown before one.
    """

    text: str = ""
    key: str = ""
    value: float | None = None
    heading: bool = False
    digits: int = 3
    interval: tuple[float, float] | None = None
    mark: str = ""
    below: str = ""

    @property
    def numeric(self) -> bool:
        return self.value is not None or self.text in ("–", NOT_MEASURED)


@dataclass(frozen=True)
class Table:
    """caption: what the numbers are, their unit and how many items they rest on.

    groups: headings over columns, (text, how many columns), if there are any. marked: the row to look at, by its place.
    one_kind: all numbers are of the same kind, and have the same decimals in every column.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    key: str = ""
    groups: Sequence[tuple[str, int]] = ()
    marked: int | None = None
    one_kind: bool = False

    @property
    def anchor(self) -> str:
        """An identifier for its caption that no other table of the page has."""
        return (
            f"caption-{hashlib.sha256(f'{self.key} {self.caption} {self.columns}'.encode()).hexdigest()[:8]}"
        )

    @property
    def full_columns(self) -> list[str]:
        """Each column's heading with its group's, for where there is one line of headings."""
        groups = [text for text, count in self.groups for _ in range(count)] or [""] * len(self.columns)
        return [f"{group} {column}".strip() for group, column in zip(groups, self.columns, strict=True)]

    @property
    def written(self) -> list[list[Cell]]:
        """The rows with every number as text: even decimals in each column."""
        columns: list[list[Cell]] = [list(column) for column in zip(*self.rows, strict=True)]
        alike = [[cell for column in columns for cell in column]] * len(columns) if self.one_kind else columns
        places = [
            decimals(
                (cell.value for cell in cells if not cell.text),
                max(cell.digits for cell in cells),
                [end for cell in cells for end in cell.interval or ()],
            )
            for cells in alike
        ]
        return [[_written(cell, place) for cell, place in zip(row, places, strict=True)] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers."""
        return [any(cell.value is not None for cell in column) for column in zip(*self.rows, strict=True)]


def _written(cell: Cell, places: int) -> Cell:
    if cell.value is None or cell.text:
        return cell
    below = bracketed(cell.interval, places) if cell.interval else ""
    return replace(cell, text=f"{cell.mark}{fixed(cell.value, places)}", below=below)


@dataclass(frozen=True)
class Chart:
    """A drawn chart and the numbers in it, for those who cannot see it."""

    key: str
    svg: str
    caption: str
    data: Table | None = None


@dataclass(frozen=True)
class Quote:
    """A text that a model wrote, with who wrote it."""

    name: str
    text: str


@dataclass(frozen=True)
class Exhibit:
    """One question and what every model answered."""

    question: str
    context: str
    expected: str
    quotes: Sequence[Quote]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; `missing` says why there is nothing, and how to get it.

    lead: the sentence that answers the section's question.
    """

    key: str
    title: str
    lead: str = ""
    intro: str = ""
    points: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    exhibits: Sequence[Exhibit] = ()
    listing: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    lead: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)
    fingerprint: str = ""


def drawn(
    key: str, draw: Any, *arguments: Any, caption: str, data: Table | None = None, **options: Any
) -> Chart:
    """Draw a chart in the page's style."""
    with chart_style():
        svg = to_svg(draw(*arguments, **options), key, caption)
    return Chart(key, svg, caption, data)


def sentence(text: str) -> str:
    """With a capital at its beginning."""
    return text[:1].upper() + text[1:]


def head(text: str) -> Cell:
    return Cell(text, heading=True)


def number(
    value: float | None,
    key: str,
    digits: int = 3,
    interval: tuple[float, float] | None = None,
    mark: str = "",
) -> Cell:
    """A number with its interval if it has one; a dash where it is not measured."""
    return Cell("–", key) if value is None else Cell("", key, float(value), False, digits, interval, mark)


def span(counts: Sequence[int]) -> str:
    """Sorted counts in a few words: "402", "24 to 120"."""
    return f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
