"""How charts look, and how a matplotlib figure becomes part of a page. No data in here.

Ink is written as `currentColor` and each series' colour as a variable of the page, so that a chart follows the page
into the dark. Series differ by marker, line style and hatch as well as by colour, so that they can be told apart in
black and white.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#0a0b0c"
"""Stands for the page's text colour while a chart is drawn."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "d")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "hatch.color": INK,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
}


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def series_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the index-th series; no two of the first twelve look alike without colour."""
    return {
        "color": colour(index),
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[(index // len(COLOURS) + index) % len(DASHES)],
    }


@contextmanager
def chart_style() -> Iterator[None]:
    """matplotlib's settings while a chart is drawn and written."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def mark(artist: Any, key: str, title: str) -> None:
    """Give a drawn thing a key, by which the page finds it, and a title, which a browser shows on hovering."""
    artist.set_gid(f"mark|{key}|{title}")


def to_svg(figure: "Figure", name: str, description: str) -> str:
    """A figure as an <svg> element that scales with its container. description: what a screen reader says."""
    import matplotlib

    buffer = io.StringIO()
    # Identifiers inside the page must differ between charts, and must not between two reports of the same data.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="mark\|(.*?)\|(.*?)">', r'<g data-key="\1"><title>\2</title>', text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", text)
    text = text.replace(INK, "currentColor")
    for place, shade in enumerate(COLOURS):
        text = text.replace(shade, f"var(--series-{place}, {shade})")
    head, _, rest = text.partition(">")
    head = re.sub(r' (width|height|xmlns:xlink|version)="[^"]*"', "", head)
    label = escape(description, quote=True)
    return f'{head} xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{label}">{rest}'


def to_png(figure: "Figure", dots_per_inch: int = 60) -> bytes:
    """A figure as a small PNG on white, for places that show no SVG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor="white")
    return buffer.getvalue()
