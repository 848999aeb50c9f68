"""The charts of how models were made: loss curves, per-layer errors, costs. Each returns a matplotlib figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compression_assets.reporting.charts import new_figure
from compression_assets.reporting.svg import HATCHES, INK, colour, mark, series_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[float, float]]


def lines(panels: Mapping[str, Mapping[str, Curve]], x_label: str, y_labels: Mapping[str, str]) -> "Figure":
    """A panel for each entry, a line for each of its curves."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(0.6 + 2.3 * len(panels), len(panels), 1)
    for ax, (panel, curves) in zip(axes.flat, panels.items(), strict=True):
        for index, (name, curve) in enumerate(curves.items()):
            every = max(1, len(curve) // 8)
            (line,) = ax.plot(*zip(*curve, strict=True), label=name, markevery=every, **series_style(index))
            mark(line, f"{panel}.{name}", f"{name}: {curve[0][1]:.4g} to {curve[-1][1]:.4g}")
        ax.set_title(panel, loc="left")
        ax.set_ylabel(y_labels[panel])
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.flat[-1].set_xlabel(x_label)
    return figure


def bars(names: Sequence[str], groups: Sequence[str], columns: Mapping[str, Sequence[float]]) -> "Figure":
    """A row for each name, a panel of horizontal bars for each column; groups are told apart by hatch and colour."""
    figure, axes = new_figure(1.0 + 0.19 * len(names), 1, len(columns), sharey=True)
    kinds = list(dict.fromkeys(groups))
    for ax, (label, values) in zip(axes[0], columns.items(), strict=True):
        for height, (name, group, value) in enumerate(zip(names, groups, values, strict=True)):
            kind = kinds.index(group)
            (bar,) = ax.barh(
                [height], [value], color=colour(kind), hatch=HATCHES[kind % len(HATCHES)], height=0.7
            )
            mark(bar, f"{name}.{label}", f"{name}: {value:,.4g} {label}")
        ax.set_xlabel(label)
        ax.grid(axis="y", visible=False)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=colour(index),
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor=INK,
            linewidth=0,
            label=kind,
        )
        for index, kind in enumerate(kinds)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(kinds), 6))
    return figure
