"""Section: how much of a training is left after the quantization that follows it."""

from statistics import fmean

from compression_assets.reporting.charts import dots
from compression_assets.reporting.making import by_layer
from compression_assets.reporting.parts import Cell, Chart, Section, Table, drawn, head, number, span
from compression_assets.reporting.read import ReportData, Row
from compression_assets.reporting.training_charts import lines

DIAGNOSTICS = {
    "perplexity_after": "perplexity after",
    "codes_changed": "codes changed",
    "surviving": "survives",
    "update_rms": "size of updates",
    "half_bin": "half a bin",
}
"""Column of step_diagnostics -> what it is called."""


def why_it_breaks(data: ReportData) -> Section:
    """How much of a training is left after the quantization that follows it, measured and predicted."""
    title = "Why it breaks"
    rows = data.tables["step_diagnostics"]
    if not rows:
        return Section("why", title, missing="No step diagnostics in this study.")
    survived = [row for row in rows if row.get("surviving") is not None]
    charts = [_survival(survived)] if survived else []
    layers = _survival_by_layer(data)
    intro = (
        "After a dequantization every weight lies exactly on a value that 4 bits can express. Training "
        "that moves it by less than half a bin is undone when the nearest code is taken again. Below: the "
        "share of the training's update that the quantization after it left (1: all, 0: none), and the "
        "share that is predicted from the grid and the size of the updates."
    )
    return Section("why", title, intro=intro, charts=[*charts, *layers], tables=[_diagnostics_table(rows)])


def _survival(rows: list[Row]) -> Chart:
    seen = {row["model"]: row for row in rows}
    marks = [
        (
            model,
            f"{model}{' (on grid)' if row.get('on_grid') else ''}",
            row["surviving"],
            row.get("predicted"),
        )
        for model, row in seen.items()
    ]
    weights = sorted({row["weights"] for row in seen.values() if row.get("weights")})
    n = f" n = {span(weights)} weights a model." if weights else ""
    return drawn(
        "survival",
        dots,
        marks,
        "share of the update that survives quantization",
        ("measured", "predicted"),
        caption="Share of the training's update that survives the quantization after it (1: all), measured "
        f"(circles) and predicted (diamonds); “on grid”: training started from dequantized weights.{n}",
        data=Table(
            "The points of the chart.",
            ["model", "measured", "predicted"],
            [
                [head(name), number(one, f"{key}.surviving"), number(other, f"{key}.predicted")]
                for key, name, one, other in marks
            ],
        ),
        logarithmic=False,
    )


def _survival_by_layer(data: ReportData) -> list[Chart]:
    curves: dict[str, list[tuple[float, float]]] = {}
    by_model: dict[str, list[Row]] = {}
    for row in data.tables["layer_diagnostics"]:
        by_model.setdefault(row["model"], []).append(row)
    for model, rows in by_model.items():
        if curve := by_layer(rows, "surviving"):
            curves[model] = curve
    if not curves:
        return []
    panel = "surviving quantization"
    table = Table(
        "Mean over decoder layers.",
        ["model", "mean", "layers (n)"],
        [
            [
                head(name),
                number(fmean(value for _, value in curve), f"{name}.surviving.mean"),
                Cell(str(len(curve))),
            ]
            for name, curve in curves.items()
        ],
    )
    caption = "The same by decoder layer: mean share of its matrices, small ones counting as large ones; dimensionless."
    return [
        drawn(
            "survival_layers",
            lines,
            {panel: curves},
            "decoder layer",
            {panel: "share"},
            caption=caption,
            data=table,
        )
    ]


def _diagnostics_table(rows: list[Row]) -> Table:
    names = [name for name in DIAGNOSTICS if any(row.get(name) is not None for row in rows)]
    tokens = sorted({row["tokens"] for row in rows if row.get("tokens")})
    n = f" Perplexity over n = {tokens[-1]:,} tokens." if tokens else ""
    return Table(
        "Every step: perplexity after it; for a Q after training the share of codes that "
        f"changed and of the update that survives, with the root mean square of the updates and half a bin "
        f"in weight units.{n}",
        ["order", "step", *(DIAGNOSTICS[name] for name in names), "note"],
        [
            [
                head(row["ordering"]),
                Cell(str(row["token"])),
                *(number(row.get(name), f"{row['ordering']}.{row['step']}.{name}") for name in names),
                Cell(row.get("note") or ""),
            ]
            for row in rows
        ],
        key="diagnostics",
    )
