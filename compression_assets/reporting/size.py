"""Section: quality against size, with the Pareto front."""

from compression_assets.evaluation.metrics import Metric
from compression_assets.reporting.charts import Point, scatter
from compression_assets.reporting.choosing import front_of, size_of
from compression_assets.reporting.metric_tables import rests_on
from compression_assets.reporting.parts import Cell, Section, Table, drawn, head, number, sentence
from compression_assets.reporting.read import Results
from compression_assets.reporting.svg import chart_style, to_png

SHOWN = ("perplexity", "f1", "g_eval", "clarity")


def size_and_quality(data: Results) -> Section:
    """A chart a metric, all models, the Pareto front joined."""
    charts = []
    for name in SHOWN:
        points = points_of(data, name)
        if len(points) < 2:
            continue
        known = data.metric(name)
        trust = " † Scored by a judge that failed its own test." if name in data.untrusted else ""
        charts.append(
            drawn(
                f"pareto_{name}",
                scatter,
                points,
                "size of the tensors (MiB), from small to large, not to scale",
                f"{known.title} ({known.direction})",
                log_y=name == "perplexity",
                caption=f"{sentence(known.title)} against size. Filled markers joined by the dashed line: "
                "no other model is both as small and as good. Sizes count as equal where shapes and format are. "
                f"Bars: {data.confidence} intervals, where computed. {rests_on(data, name)}{trust}",
                data=_point_table(points, known),
            )
        )
    missing = "" if charts else "Needs at least two measured models."
    return Section("size", "Quality against size", charts=charts, missing=missing)


def points_of(data: Results, name: str) -> list[Point]:
    """A point for every model of which size and the metric are known."""
    known = [row for row in data.rows if row.get("size_mib") is not None and row.get(name) is not None]
    front = {row["model"] for row in front_of(known, name)}
    return [
        Point(
            row["model"],
            row["ordering"],
            size_of(row),
            row[name],
            data.interval(row["model"], name),
            row["model"] in front,
        )
        for row in known
    ]


def overview(data: Results) -> bytes:
    """Perplexity against size of every measured model, as a small PNG."""
    with chart_style():
        return to_png(scatter(points_of(data, "perplexity"), "size (MiB)", "perplexity", log_y=True))


def _point_table(points: list[Point], known: Metric) -> Table:
    rows = [
        [
            head(point.name),
            number(point.x, f"{point.key}.tensor_mib", 4),
            number(point.y, f"{point.key}.{known.name}", known.digits, point.interval),
            Cell("yes" if point.on_front else "no"),
        ]
        for point in points
    ]
    return Table("The points of the chart.", ["model", "tensors (MiB)", known.label, "on the front"], rows)
