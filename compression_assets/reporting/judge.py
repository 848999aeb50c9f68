"""Section: how the judge did on planted answers."""

from compression_assets.evaluation.metrics import metric
from compression_assets.reporting.charts import dots
from compression_assets.reporting.parts import Cell, Section, Table, drawn, head, number
from compression_assets.reporting.read import ReportData, Row


def calibration(data: ReportData) -> Section:
    """How each judge did on planted answers."""
    title = "Can the judge be trusted?"
    rows = data.tables["judge_calibration"]
    if not rows:
        return Section("judge", title, missing="No judge has taken its calibration in this study.")
    known = [row for row in rows if row.get("accuracy") is not None]
    judges = ", ".join(sorted({str(row["judge"]) for row in rows}))
    table = Table(
        f"Judge: {judges}. Pairwise accuracy on planted answers whose order is known, with its 95 % interval; "
        "n: pairs. A column is trusted when the interval lies above the threshold. Half of the pairs is what "
        "guessing comes to.",
        ["metric", "pairs (n)", "right", "failed", "accuracy", "threshold", "trusted", "detail"],
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
                    (
                        row["metric"],
                        f"{metric(row['metric']).title} (n = {row['pairs']})",
                        row["accuracy"],
                        None,
                    )
                    for row in known
                ],
                "share of planted pairs in the right order",
                ("accuracy, with 95 % interval", "threshold"),
                caption="The judge's pairwise accuracy on planted answers and its 95 % interval; the "
                "vertical line is the threshold that the whole interval has to pass.",
                logarithmic=False,
                line=known[0]["threshold"],
                intervals={row["metric"]: (row["lo"], row["hi"]) for row in known},
            )
        )
    return Section("judge", title, charts=charts, tables=[table])


def _calibration_row(row: Row) -> list[Cell]:
    name, lo, hi = row["metric"], row.get("lo"), row.get("hi")
    return [
        head(metric(name).title),
        number(row.get("pairs"), f"{name}.pairs"),
        number(row.get("right"), f"{name}.right"),
        number(row.get("failed"), f"{name}.failed"),
        number(row.get("accuracy"), f"{name}.accuracy", 3, None if lo is None or hi is None else (lo, hi)),
        number(row.get("threshold"), f"{name}.threshold"),
        Cell("yes" if row["trusted"] else "NO"),
        Cell(str(row.get("detail") or "")),
    ]
