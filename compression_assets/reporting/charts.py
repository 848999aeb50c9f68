"""The charts of results: each takes plain values and returns a matplotlib figure. Nothing is read here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from compression_assets.reporting.svg import INK, colour, mark, series_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 6.4


@dataclass(frozen=True)
class Point:
    """One model in a chart: its key, the name that is written beside it, two values and y's interval."""

    key: str
    name: str
    x: float
    y: float
    interval: tuple[float, float] | None = None
    on_front: bool = False


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple["Figure", Any]:
    """A figure of the page's width and its axes as an array (rows, columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def plain_log_axis(axis: Any) -> None:
    """Numbers rather than powers of ten on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def scatter(points: Sequence[Point], x_label: str, y_label: str, *, log_y: bool) -> "Figure":
    """A strip for each size, from small to large and not to scale; models of one size stand side by side in it.

    Markers on the Pareto front are filled and joined.
    """
    figure, axes = new_figure(4.1)
    ax = axes[0][0]
    sizes = sorted({point.x for point in points})
    places = _places(points, sizes)
    for index, point in enumerate(points):
        x = places[point.key]
        style = series_style(index) | {"linestyle": "none"}
        face = style["color"] if point.on_front else "none"
        if point.interval:
            ax.plot([x, x], point.interval, color=style["color"], linewidth=1)
        (line,) = ax.plot([x], [point.y], markerfacecolor=face, markersize=8, label=point.name, **style)
        mark(line, point.key, f"{point.name}: {y_label} {point.y:.4g}, {x_label} {point.x:.4g}")
    front = sorted((places[point.key], point.y) for point in points if point.on_front)
    ax.plot(
        [x for x, _ in front],
        [y for _, y in front],
        color=INK,
        linewidth=0.8,
        linestyle=(0, (4, 3)),
        zorder=0,
    )
    for between in range(1, len(sizes)):
        ax.axvline(between - 0.5, color=INK, alpha=0.15, linewidth=0.6)
    ax.set_xticks(range(len(sizes)), [f"{size:,.4g}" for size in sizes])
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.grid(axis="x", visible=False)
    if log_y:
        ax.set_yscale("log")
        plain_log_axis(ax.yaxis)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def _places(points: Sequence[Point], sizes: Sequence[float]) -> dict[str, float]:
    """Key -> where it stands on the axis: the place of its size, and beside others of that size by their value."""
    places = {}
    for strip, size in enumerate(sizes):
        own = sorted((point for point in points if point.x == size), key=lambda point: point.y)
        for order, point in enumerate(own, start=1):
            places[point.key] = strip - 0.4 + 0.8 * order / (len(own) + 1)
    return places


def dots(
    rows: Sequence[tuple[str, str, float | None, float | None]],
    label: str,
    names: tuple[str, str],
    *,
    logarithmic: bool,
    line: float | None = 1.0,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> "Figure":
    """A row for each (key, name, first value, second value): a filled circle and an open diamond.

    names: of the two values. line: where a vertical line stands. intervals: key -> that of its first value.
    """
    figure, axes = new_figure(0.9 + 0.27 * len(rows))
    ax = axes[0][0]
    looks = (
        {"marker": "o", "color": colour(0)},
        {"marker": "D", "color": colour(1), "markerfacecolor": "none"},
    )
    for height, (key, name, *values) in enumerate(rows):
        known = [value for value in values if value is not None]
        ax.plot(known, [height] * len(known), color=INK, alpha=0.35, linewidth=0.8, zorder=0)
        for value, look, which, suffix in zip(values, looks, names, ("", ".second"), strict=True):
            if value is not None:
                (point,) = ax.plot([value], [height], linestyle="none", markersize=7, **look)
                mark(point, key + suffix, f"{name}, {which}: {value:.4g}")
        if interval := (intervals or {}).get(key):
            ax.plot(interval, [height, height], color=colour(0), linewidth=1.6, zorder=1)
    second = any(row[3] is not None for row in rows)
    for look, which in list(zip(looks, names, strict=True))[: 1 + second]:
        ax.plot([], [], linestyle="none", markersize=7, label=which, **look)
    if line is not None:
        ax.axvline(line, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(rows)), [row[1] for row in rows])
    ax.invert_yaxis()
    if logarithmic:
        ax.set_xscale("log")
        plain_log_axis(ax.xaxis)
    ax.set_xlabel(label)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def by_step(panels: Mapping[str, Sequence[tuple[str, float | None]]], label: str) -> "Figure":
    """One panel an ordering: (step, value) along it, None where a step was not measured.

    The step with the largest rise is drawn thick and named in the panel's title.
    """
    columns = 2
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(0.4 + 1.55 * rows, rows, columns, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (name, steps) in zip(axes.flat, panels.items(), strict=False):
        known = [(place, value) for place, (_, value) in enumerate(steps) if value is not None]
        for (place, value), (after, then) in pairwise(known):
            dashes = "-" if after == place + 1 else (0, (2, 2))
            ax.plot([place, after], [value, then], color=colour(0), linestyle=dashes)
        for place, value in known:
            (line,) = ax.plot([place], [value], marker="o", linestyle="none", color=colour(0))
            mark(line, f"{name}.{place}", f"{name}, after {steps[place][0]}: {value:.4g}")
        ax.set_title(name + _show_break(ax, known, [step for step, _ in steps]), loc="left")
        ax.set_xticks(range(len(steps)), [step for step, _ in steps])
        ax.set_xlim(-0.3, len(steps) - 0.7)
        ax.set_yscale("log")
        plain_log_axis(ax.yaxis)
    figure.supylabel(label, fontsize=9)
    return figure


def largest_rise(known: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], tuple[int, float]] | None:
    """The two neighbouring points between which the value grows by the largest factor; None if it never grows."""
    pairs = [(first, second) for first, second in pairwise(known) if second[1] > first[1]]
    return max(pairs, key=lambda pair: pair[1][1] / pair[0][1], default=None)


def _show_break(ax: Any, known: Sequence[tuple[int, float]], steps: Sequence[str]) -> str:
    """Draw the largest rise; what it is in a few words, or nothing where no step raises the value."""
    rise = largest_rise(known)
    if rise is None:
        return ""
    (start, low), (end, high) = rise
    ax.plot([start, end], [low, high], color=colour(1), linewidth=4, solid_capstyle="butt", zorder=0)
    return f" · {steps[end]}: ×{high / low:.3g}"
