"""Section: what searches have tried, and whether they found better than the study's own orders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.evaluation.metrics import metric
from compression_assets.reporting.charts import new_figure, plain_log_axis
from compression_assets.reporting.parts import Cell, Chart, Section, Table, drawn, head, number
from compression_assets.reporting.read import ReportData
from compression_assets.reporting.svg import INK, colour, mark
from compression_assets.store.fingerprints import fingerprint
from compression_assets.study.model import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRIALS, OUTCOME = "search_trials", "search_outcome"
"""Tables: a row a trial and rung, and a row a search and seed."""
IRRELEVANT = ("description", "orderings", "sweep", "seeds", "goal", "search", "external_models", "tracking")
"""Keys of a study that change no figure of a trial."""
SHOWN = 12
NEAR = 1.25
"""Sizes that a chart shows, as a multiple of the limit."""

Row = Mapping[str, Any]


def basis(study: Study) -> str:
    """Hash of what a trial's figures rest on; trials of another one are of an earlier state of the study."""
    content = study.model_dump(mode="json", by_alias=True, exclude=set(IRRELEVANT))
    content["techniques"] = {
        name: recipe for name, recipe in content["techniques"].items() if ":" not in name
    }
    return fingerprint(content)[:16]


def searches(data: ReportData) -> Section | None:
    """Quality against size with every trial, the best at the full budget, and the verdict; None without a search."""
    now = basis(data.study)
    rows = [row for row in data.tables[TRIALS] if row["basis"] == now]
    if not rows:
        return None
    names = list(dict.fromkeys(row["search"] for row in rows))
    verdicts = {row["search"]: row["verdict"] for row in data.tables[OUTCOME] if row["basis"] == now}
    lead = " ".join(verdicts.get(name, f"{name}: the search has not come to its end.") for name in names)
    charts, tables = [], []
    for name in names:
        own = [row for row in rows if row["search"] == name]
        known = data.metric(own[0]["metric"])
        written = [
            (data.name(model), size, value)
            for model in data.models
            if (size := data.value(model, "size_mib"))
            and (value := data.value(model, known.name)) is not None
        ]
        charts.append(_chart(name, own, written, known.title))
        tables.append(_best(own, known.label, known.digits))
        ended = [row for row in data.tables[OUTCOME] if row["basis"] == now and row["search"] == name]
        if ended:
            tables.append(_repeats(ended, known.label, known.digits))
    return Section("search", "What a search found", lead=lead, charts=charts, tables=tables)


def trials_chart(rows: Sequence[Row], written: Sequence[tuple[str, float, float]], y_label: str) -> "Figure":
    """Every measured trial, larger and darker the more tokens it had; the study's own models as crosses.

    written: (name, MiB, value); those that are far above the limit are left out.
    """
    figure, axes = new_figure(4.1)
    ax = axes[0][0]
    measured = [row for row in rows if row["value"] is not None and row["size_mib"] is not None]
    rungs = sorted({row["rung"] for row in measured})
    for place, rung in enumerate(rungs):
        own = [row for row in measured if row["rung"] == rung]
        look = {"marker": "os^Dv"[place % 5], "color": colour(place), "markersize": 5 + 2 * place}
        for row in own:
            (point,) = ax.plot([row["size_mib"]], [row["value"]], linestyle="none", alpha=0.8, **look)
            label = f"{row['model_ordering']}: {row['value']:.4g} at {row['size_mib']:.4g} MiB"
            mark(point, f"{row['search']}.{row['trial']}.{rung}", label)
        ax.plot([], [], linestyle="none", label=f"{own[0]['budget']:.0%} of the tokens", **look)
    limit = rows[0]["max_size_mib"]
    near = [(name, size, value) for name, size, value in written if size <= NEAR * limit]
    for name, size, value in near:
        (point,) = ax.plot([size], [value], marker="x", color=INK, linestyle="none")
        mark(point, f"written.{name}", f"{name}: {value:.4g} at {size:.4g} MiB")
        ax.annotate(name, (size, value), textcoords="offset points", xytext=(4, 3), fontsize=7)
    if near:
        ax.plot([], [], marker="x", color=INK, linestyle="none", label="the study's own orders")
    ax.axvline(limit, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set_yscale("log" if measured and all(row["value"] > 0 for row in measured) else "linear")
    if ax.get_yscale() == "log":
        plain_log_axis(ax.yaxis)
    ax.set_xlabel("size of the weights file (MiB); dashed: the limit")
    ax.set_ylabel(y_label)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def write_picture(file: Path, rows: Sequence[Row], written: Sequence[tuple[str, float, float]]) -> None:
    """The chart as an SVG file of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    svg = _chart(rows[0]["search"], rows, written, metric(rows[0]["metric"]).title).svg
    file.write_text(svg, encoding="utf-8")


def _chart(name: str, rows: Sequence[Row], written: Sequence[tuple[str, float, float]], title: str) -> Chart:
    known = metric(rows[0]["metric"])
    measured = len({(row["trial"], row["rung"]) for row in rows if row["value"] is not None})
    left_out = len({row["trial"] for row in rows if row["state"] == "left out"})
    caption = (
        f"Search {name}: {title} ({known.direction}) against size, {measured} measurements of "
        f"{len({row['trial'] for row in rows}) - left_out} trials; {left_out} more were never built (too large, "
        "impossible, the same as another, or out of time). All are measured after every step of their order."
    )
    return drawn(
        f"search_{name}", trials_chart, rows, written, f"{title} ({known.direction})", caption=caption
    )


def _best(rows: Sequence[Row], label: str, digits: int) -> Table:
    """The trials that reached the full budget, else those that came furthest, the best first."""
    known = [row for row in rows if row["value"] is not None]
    last = max((row["rung"] for row in known), default=0)
    sign = -1 if metric(rows[0]["metric"]).higher_is_better else 1
    best = sorted((row for row in known if row["rung"] == last), key=lambda row: sign * row["value"])[:SHOWN]
    return Table(
        f"Search {rows[0]['search']}: the best trials with {best[0]['budget']:.0%} of the tokens, for one seed."
        if best
        else f"Search {rows[0]['search']}: nothing is measured yet.",
        ["trial", "ordering", label, "MiB"],
        [
            [
                Cell(str(row["trial"])),
                head(row["model_ordering"]),
                number(row["value"], f"{row['search']}.{row['trial']}.value", digits),
                number(row["size_mib"], f"{row['search']}.{row['trial']}.size_mib", 4),
            ]
            for row in best
        ],
        key=f"search.{rows[0]['search']}",
    )


def _repeats(rows: Sequence[Row], label: str, digits: int) -> Table:
    """The winner beside the study's best order, a row a seed."""
    first, key = rows[0], f"search.{rows[0]['search']}"
    written = first["written_ordering"]
    beside = (
        f"{written}, the study's best" if written else "none, as no order of the study is within this size"
    )
    return Table(
        f"Search {first['search']}: {label} of the winner, {first['found_ordering']}, and of another order: {beside}. "
        "The difference is over the items that both have, with its interval over items; p of the paired randomisation "
        "test after Holm's correction for the seeds.",
        ["seed", "winner", "study's best", "difference", "p"],
        [
            [
                Cell(str(row["seed"]), heading=True),
                number(row["found_value"], f"{key}.{row['seed']}.found", digits),
                number(row["written_value"], f"{key}.{row['seed']}.written", digits),
                number(row["difference"], f"{key}.{row['seed']}.difference", digits, _interval(row)),
                number(row["p_holm"], f"{key}.{row['seed']}.p", 2),
            ]
            for row in rows
        ],
        key=f"{key}.repeats",
    )


def _interval(row: Row) -> tuple[float, float] | None:
    return None if row["lo"] is None or row["hi"] is None else (row["lo"], row["hi"])
