"""What a page is made of: sections, charts and tables. No data and no HTML in here."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from compression_assets.reporting.svg import chart_style, to_svg

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Cell:
    """One cell of a table. text: what is shown. key, value: what a number is and exactly, for whoever checks it."""

    text: str
    key: str = ""
    value: float | None = None
    heading: bool = False

    @property
    def numeric(self) -> bool:
        return self.value is not None or self.text in ("–", NOT_MEASURED)


@dataclass(frozen=True)
class Table:
    """caption: what the numbers are, their unit and how many items they rest on."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    key: str = ""

    @property
    def anchor(self) -> str:
        """An identifier for its caption that no other table of the page has."""
        return (
            f"caption-{hashlib.sha256(f'{self.key} {self.caption} {self.columns}'.encode()).hexdigest()[:8]}"
        )


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
    """A heading and what stands below it; `missing` says why there is nothing, and how to get it."""

    key: str
    title: str
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


def head(text: str) -> Cell:
    return Cell(text, heading=True)


def number(
    value: float | None, key: str, digits: int = 3, interval: tuple[float, float] | None = None
) -> Cell:
    """A number with its half-width if it has an interval; a dash where it is not measured."""
    if value is None:
        return Cell("–", key)
    return Cell(
        significant(value, digits) if interval is None else with_half_width(value, *interval), key, value
    )


def with_half_width(value: float, lo: float, hi: float) -> str:
    """Such as "49.7 ± 7.0": the half-width with two significant digits, the value with as many decimals."""
    half = (hi - lo) / 2
    if half == 0:
        return f"{significant(value)} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f"{value:,.{decimals}f} ± {half:,.{decimals}f}"


def significant(value: float, digits: int = 3) -> str:
    """A number with that many significant digits, never in powers of ten below a billion."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:,.1f}"
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:.{digits + 3}f}"


def span(counts: Sequence[int]) -> str:
    """Sorted counts in a few words: "402", "24 to 120"."""
    return f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
