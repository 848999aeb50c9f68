"""Sections about why an order breaks, which differences are real, and how far judged quality can be "
"trusted."""

from statistics import fmean
from typing import Any

from compression_assets.reporting.charts import dots
from compression_assets.reporting.making import by_layer
from compression_assets.reporting.parts import (
    Cell,
    Chart,
    Exhibit,
    Quote,
    Section,
    Table,
    drawn,
    head,
    number,
    span,
)
from compression_assets.reporting.read import ReportData, Row
from compression_assets.reporting.training_charts import lines

DIAGNOSTICS = (
    *("perplexity_before", "perplexity_after", "codes_changed", "surviving", "predicted"),
    *("update_rms", "half_bin"),
)


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
    caption = "The same by decoder layer: mean share over a layer's linear weights; dimensionless."
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
        "Every step: perplexity before and after it; for a Q after training the share of codes that "
        f"changed and of the update that survives, with the root mean square of the updates and half a bin "
        f"in weight units.{n}",
        ["order", "step", "technique", *(name.replace("_", " ") for name in names), "note"],
        [
            [
                head(row["ordering"]),
                Cell(str(row["step"])),
                Cell(str(row["token"])),
                *(number(row.get(name), f"{row['ordering']}.{row['step']}.{name}") for name in names),
                Cell(row.get("note") or ""),
            ]
            for row in rows
        ],
        key="diagnostics",
    )


def calibration(data: ReportData) -> Section:
    """How each judge did on planted answers."""
    title = "Can the judge be trusted?"
    rows = data.tables["judge_calibration"]
    if not rows:
        return Section("judge", title, missing="No judge has taken its calibration in this study.")
    known = [row for row in rows if row.get("accuracy") is not None]
    table = Table(
        "Pairwise accuracy on planted answers whose order is known, with its 95 % interval; n: pairs. A "
        "column is trusted when the interval lies above the threshold. Half of the pairs is what guessing "
        "comes to.",
        [
            "metric",
            "judge",
            "pairs (n)",
            "right",
            "failed",
            "accuracy",
            "interval",
            "threshold",
            "trusted",
            "detail",
        ],
        [_calibration_row(row) for row in rows],
        key="calibration",
    )
    charts = []
    if known:
        charts.append(
            drawn(
                "calibration",
                dots,
                [
                    (row["metric"], f"{row['metric']} (n = {row['pairs']})", row["accuracy"], None)
                    for row in known
                ],
                "share of planted pairs in the right order",
                ("accuracy, with 95 % interval", "threshold"),
                caption="The judge's pairwise accuracy on planted answers and its 95 % interval; the "
                "vertical line is the threshold that the whole interval has to pass.",
                logarithmic=False,
                line=known[0]["threshold"],
                intervals=[(row["lo"], row["hi"]) for row in known],
            )
        )
    return Section("judge", title, charts=charts, tables=[table])


def _calibration_row(row: Row) -> list[Cell]:
    name, lo, hi = row["metric"], row.get("lo"), row.get("hi")
    return [
        head(name),
        Cell(str(row["judge"])),
        number(row.get("pairs"), f"{name}.pairs"),
        number(row.get("right"), f"{name}.right"),
        number(row.get("failed"), f"{name}.failed"),
        number(row.get("accuracy"), f"{name}.accuracy"),
        Cell("–" if lo is None or hi is None else f"{lo:.2f} to {hi:.2f}"),
        number(row.get("threshold"), f"{name}.threshold"),
        Cell("yes" if row["trusted"] else "NO"),
        Cell(str(row.get("detail") or "")),
    ]


def comparisons(data: ReportData) -> Section:
    """Paired differences between models, a matrix a metric."""
    title = "Which differences are real"
    rows = data.tables["comparisons"]
    if not rows:
        return Section("comparisons", title, missing="No paired comparisons in this study.")
    intro = (
        "Each cell is the row's model less the column's, over the items that both have. ▲: the row's model "
        "is better, ▼: worse, after Holm's correction for the number of pairs; ○: the data do not tell "
        "them apart; –: not comparable. Intervals and p-values: SELECT * FROM comparisons."
    )
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    return Section(
        "comparisons", title, intro=intro, tables=[_matrix(data, rows, metric) for metric in metrics]
    )


def _matrix(data: ReportData, rows: list[Row], metric: str) -> Table:
    own = {(row["model_a"], row["model_b"]): row for row in rows if row["metric"] == metric}
    present = {model for pair in own for model in pair}
    models = [model for model in data.models if model in present]
    cells = [
        [head(data.name(one)), *(_compared(own, one, other, metric) for other in models[:-1])]
        for one in models[1:]
    ]
    told = sum(row["better"] is not None for row in own.values())
    counts = sorted({row["n"] for row in own.values()})
    caption = f"{metric}: {told} of {len(own)} pairs can be told apart; n = {span(counts)} shared items."
    return Table(
        caption, ["model", *(data.name(model) for model in models[:-1])], cells, key=f"comparisons.{metric}"
    )


def _compared(own: dict[tuple[str, str], Row], one: str, other: str, metric: str) -> Cell:
    """The cell of row `one` and column `other`; the upper half of the matrix would repeat the lower."""
    row = own.get((other, one))
    if row is None:
        return Cell("")
    if row["difference"] is None:
        return Cell("–")
    sign = "○" if row["better"] is None else "▲" if row["better"] == one else "▼"
    value = -row["difference"]
    shown = number(value, f"{metric}.{one}.{other}", 3)
    return Cell(f"{sign} {shown.text}", shown.key, value)


def sample_answers(data: ReportData) -> Section:
    """The same questions answered by every model."""
    title = "Sample answers, side by side"
    if not data.answers:
        return Section("answers", title, missing="No questions were asked in this study.")
    questions: dict[str, Row] = {row["id"]: row for rows in data.answers.values() for row in rows}
    exhibits = [_exhibit(data, name, row) for name, row in questions.items()]
    intro = (
        f"The first {len(exhibits)} questions, not chosen for their answers. "
        "What models wrote is shown as it is, as plain text."
    )
    return Section("answers", title, intro=intro, exhibits=exhibits)


def _exhibit(data: ReportData, question: str, row: Row) -> Exhibit:
    quotes = [
        Quote(data.name(model), answer["answer"])
        for model, answers in data.answers.items()
        for answer in answers
        if answer["id"] == question
    ]
    expected: Any = dict.fromkeys(row["expected"])
    return Exhibit(row["question"], row["context"], " / ".join(expected), quotes)
