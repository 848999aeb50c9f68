"""Sections about results: the leaderboard beside the paper, quality against size, where an order breaks."""

from collections.abc import Mapping
from typing import Any

from compression_assets.reporting.caveats import caveats, untrusted_metrics
from compression_assets.reporting.charts import Point, by_step, dots, scatter
from compression_assets.reporting.parts import Cell, Section, Table, drawn, head, number, significant, span
from compression_assets.reporting.read import ReportData
from compression_assets.reporting.svg import chart_style, to_png

PAPER_METRICS = ("perplexity", "size_mib", "g_eval", "prompt_alignment", "clarity")
LABELS = {
    "perplexity": "perplexity",
    "size_mib": "size (MiB)",
    "compression_ratio": "ratio",
    "g_eval": "G-Eval",
    "prompt_alignment": "prompt alignment",
    "exact_match": "exact match",
    "f1": "F1",
}
LOW_IS_GOOD = "lower is better"


def cautions(data: ReportData) -> Section:
    return Section("limits", "What these figures cannot say", points=caveats(data))


def leaderboard(data: ReportData) -> Section:
    """Every measured model beside the paper's Table 1, absolutely and as a multiple of the base."""
    others = sorted(
        {name for rows in data.metrics.values() for name, row in rows.items() if row["value"] is not None}
        - {*PAPER_METRICS, "parameters"}
    )
    tables = [leaderboard_table(data)]
    if others:
        rows = [
            [head(data.name(model)), *(_cell(data, model, name, 3) for name in others)]
            for model in data.models
        ]
        caption = f"Everything else that was measured. {_items(data, others)}"
        tables.append(Table(caption, ["model", *(_label(name) for name in others)], rows, key="more"))
    charts = [_relative(data)] if data.paper else []
    return Section("leaderboard", "Leaderboard, beside the paper's Table 1", charts=charts, tables=tables)


def leaderboard_table(data: ReportData) -> Table:
    """The columns of the paper's Table 1 that were measured, each followed by the paper's own."""
    untrusted = untrusted_metrics(data)
    measured = [
        name for name in PAPER_METRICS if any(data.value(model, name) is not None for model in data.models)
    ]
    columns = ["model"]
    for name in measured:
        columns += [_label(name) + (" †" if name in untrusted else ""), "paper"]
    rows = [[head(data.name(model)), *_pairs(data, model, measured)] for model in data.models]
    return Table(_caption(data, measured, untrusted), columns, rows, key="leaderboard")


def _cell(data: ReportData, model: str, metric: str, digits: int) -> Cell:
    return number(data.value(model, metric), f"{model}.{metric}", digits, data.interval(model, metric))


def _pairs(data: ReportData, model: str, metrics: list[str]) -> list[Cell]:
    cells = []
    for name in metrics:
        paper = data.paper.get(model, {}).get(name)
        cells.append(_cell(data, model, name, 4))
        cells.append(number(paper, f"{model}.{name}.paper", 4))
    return cells


def _caption(data: ReportData, metrics: list[str], untrusted: Mapping[str, str]) -> str:
    intervals = any(data.interval(model, name) for model in data.models for name in metrics)
    parts = [
        "This study's figures, each followed by the paper's for the same order (arXiv 2511.19495).",
        "± is half of a 95 % interval over test items." if intervals else "Intervals have not been computed.",
        _items(data, metrics),
        "Size is that of the saved weights; perplexity: lower is better; the others: higher is better.",
    ]
    absent = [_label(name) for name in PAPER_METRICS if name not in metrics]
    if absent:
        parts.append(f"Not measured: {', '.join(absent)}.")
    if untrusted:
        parts.append("† scored by a judge that failed its calibration: NOT to be trusted.")
    return " ".join(parts)


def _items(data: ReportData, metrics: list[str]) -> str:
    """How many items each metric rests on: "perplexity: n = 6,144"."""
    found = []
    for name in metrics:
        counts = sorted({rows[name]["n"] for rows in data.metrics.values() if name in rows})
        unit = next((rows[name]["unit"] for rows in data.metrics.values() if name in rows), "")
        if counts and counts[-1] > 1:
            found.append(f"{_label(name)}: n = {span(counts)}{f' ({unit})' if unit not in ('', '1') else ''}")
    return "; ".join(found) + "." if found else ""


def _label(metric: str) -> str:
    return LABELS.get(metric, metric.replace("_", " "))


def _relative(data: ReportData) -> Any:
    rows = []
    for model in data.models:
        rows.append((model, data.name(model), _to_base(data, model), _paper_to_base(data, model)))
    caption = (
        "Perplexity as a multiple of the base model's, this study (filled circles) and the paper (open "
        f"diamonds), on a logarithmic axis; right of the line is worse than the base. "
        f"{_items(data, ['perplexity'])}"
    )
    table = Table(
        "Perplexity as a multiple of the base model's.",
        ["model", "this study", "paper"],
        [
            [head(name), number(ours, f"{key}.relative"), number(paper, f"{key}.relative.paper")]
            for key, name, ours, paper in rows
        ],
    )
    return drawn(
        "beside_paper",
        dots,
        rows,
        "perplexity ÷ the base's",
        ("this study", "paper"),
        caption=caption,
        data=table,
        logarithmic=True,
    )


def _to_base(data: ReportData, model: str) -> float | None:
    own, base = data.value(model, "perplexity"), data.value("base", "perplexity")
    return None if own is None or base is None else own / base


def _paper_to_base(data: ReportData, model: str) -> float | None:
    own, base = data.paper.get(model), data.paper.get("base")
    return own["perplexity"] / base["perplexity"] if own and base else None


def pareto_front(points: list[tuple[float, float]], *, low_y: bool) -> list[bool]:
    """Which (size, quality) points no other point beats: as small, as good, and better in one of both."""

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        better = one[1] <= other[1] if low_y else one[1] >= other[1]
        return one[0] <= other[0] and better and one != other

    return [not any(beats(other, point) for other in points) for point in points]


def size_and_quality(data: ReportData) -> Section:
    """A chart a quality metric, all models, the Pareto front joined."""
    charts = []
    for metric, low in (("perplexity", True), ("f1", False), ("g_eval", False), ("clarity", False)):
        points = points_of(data, metric, low=low)
        if len(points) < 2:
            continue
        trust = " Scored by an untrusted judge." if metric in untrusted_metrics(data) else ""
        charts.append(
            drawn(
                f"pareto_{metric}",
                scatter,
                points,
                "size of the weights (MiB)",
                f"{_label(metric)} ({LOW_IS_GOOD if low else 'higher is better'})",
                log_y=low,
                caption=f"{_label(metric)} against size. Filled markers joined by the dashed line: no "
                f"other model is both as small and as good. Bars: 95 % intervals, where computed. "
                f"{_items(data, [metric])}{trust}",
                data=_point_table(points, metric),
            )
        )
    missing = "" if charts else "Needs at least two measured models."
    return Section("size", "Quality against size", charts=charts, missing=missing)


def points_of(data: ReportData, metric: str, *, low: bool) -> list[Point]:
    """A point for every model of which size and `metric` are known. low: whether lower is better."""
    known = [
        (model, size, value)
        for model in data.models
        if (size := data.value(model, "size_mib")) is not None
        and (value := data.value(model, metric)) is not None
    ]
    front = pareto_front([(size, value) for _, size, value in known], low_y=low)
    return [
        Point(model, data.name(model), size, value, data.interval(model, metric), on)
        for (model, size, value), on in zip(known, front, strict=True)
    ]


def overview(data: ReportData) -> bytes:
    """Perplexity against size of every measured model, as a small PNG."""
    with chart_style():
        return to_png(
            scatter(points_of(data, "perplexity", low=True), "size (MiB)", "perplexity", log_y=True)
        )


def _point_table(points: list[Point], metric: str) -> Table:
    rows = [
        [
            head(point.name),
            number(point.x, f"{point.key}.size_mib", 4),
            number(point.y, f"{point.key}.{metric}", 4, point.interval),
            Cell("yes" if point.on_front else "no"),
        ]
        for point in points
    ]
    return Table("The points of the chart.", ["model", "size (MiB)", _label(metric), "on the front"], rows)


def steps_of_orderings(data: ReportData) -> Section:
    """Perplexity after each step of every ordering of at least two steps."""
    after = step_perplexities(data)
    panels = {}
    for ordering in data.study.parsed_orderings:
        if ordering.key not in data.metrics or len(ordering.text.split("-")) < 2:
            continue
        paths = [ordering.path[:length] for length in range(len(ordering.path) + 1)]
        panels[ordering.text] = [
            (path[-1] if path else "base", after.get(data.study.nodes[path].key)) for path in paths
        ]
    if not panels:
        return Section(
            "steps", "Where an order breaks", missing="No ordering of several steps has been measured yet."
        )
    rows = [
        [
            head(name),
            *(
                Cell(
                    f"{step} {significant(value, 4) if value is not None else '–'}", f"{name}.{place}", value
                )
                for place, (step, value) in enumerate(steps)
            ),
        ]
        for name, steps in panels.items()
    ]
    longest = max(len(row) for row in rows)
    padded = [[*row, *[Cell("")] * (longest - len(row))] for row in rows]
    table = Table(
        "Perplexity after each step.", ["order", *(f"step {place}" for place in range(longest - 1))], padded
    )
    chart = drawn(
        "steps",
        by_step,
        panels,
        "perplexity, lower is better",
        caption="Perplexity after each step of every order (logarithmic axis). The thick segment is the "
        f"step with the largest rise; dotted lines pass over steps that were not measured. "
        f"{_tokens_of_steps(data)}",
        data=table,
    )
    intro = (
        "D restores 16-bit weights from a quantized model so that pruning or training can follow; "
        "the last Q quantizes them again."
    )
    return Section("steps", "Where an order breaks", intro=intro, charts=[chart])


def step_perplexities(data: ReportData) -> dict[str, float]:
    """Model of the prefix tree -> perplexity: all from step_diagnostics where it has any, since it may "
    "score fewer tokens."""
    found = {}
    for row in data.tables["step_diagnostics"]:
        for model, value in (
            (row["parent"], row["perplexity_before"]),
            (row["model"], row["perplexity_after"]),
        ):
            if value is not None:
                found[model] = value
    measured = {
        model: value for model in data.models if (value := data.value(model, "perplexity")) is not None
    }
    return found or measured


def _tokens_of_steps(data: ReportData) -> str:
    tokens = {row["tokens"] for row in data.tables["step_diagnostics"] if row.get("tokens")}
    return f"n = {max(tokens):,} tokens." if tokens else _items(data, ["perplexity"])
