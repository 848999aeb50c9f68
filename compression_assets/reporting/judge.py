"""Section: how the judge did on planted answers."""

from dataclasses import replace

from compression_assets.evaluation.judging.calibration import ALL
from compression_assets.evaluation.metrics import in_order, metric
from compression_assets.reporting.charts import dots
from compression_assets.reporting.parts import Cell, Section, Table, drawn, head, number
from compression_assets.reporting.read import ReportData, Row


def calibration(data: ReportData) -> Section:
    """How the judge did on planted answers: what decides by column, and beside it each kind of answer."""
    title = "Can the judge be trusted?"
    by_kind = data.tables["judge_calibration"]
    rows = [row for row in by_kind if row["kind"] == ALL]
    if not rows:
        return Section("judge", title, missing="No judge has taken its calibration in this study.")
    known = [row for row in rows if row.get("accuracy") is not None]
    judges = ", ".join(sorted({str(row["judge"]) for row in rows}))
    table = Table(
        f"Judge: {judges}. Pairwise accuracy on planted answers whose order is known, with its 95 % interval; "
        "n: pairs. A column is trusted when the interval lies above the threshold and the accuracy of each kind that "
        "the study demands reaches it. Half of the pairs is what guessing comes to.",
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
    return Section("judge", title, charts=charts, tables=[table, _kinds(by_kind)])


def _kinds(rows: list[Row]) -> Table:
    """A row a kind of planted answer, a column a metric."""
    found = {(row["kind"], row["metric"]): row for row in rows if row["kind"] != ALL}
    metrics = in_order({name for _, name in found})
    return Table(
        "Pairs in the right order by kind: what the worse answer does wrong, or what makes the better one hard to "
        "recognise. Of how many pairs in small type; – where a kind says nothing about a metric.",
        ["kind of answer", *(metric(name).title for name in metrics)],
        [
            [head(kind.replace("_", " ")), *(_share(found.get((kind, name))) for name in metrics)]
            for kind in dict.fromkeys(kind for kind, _ in found)
        ],
        key="calibration.kinds",
    )


def _share(row: Row | None) -> Cell:
    if row is None or row["accuracy"] is None:
        return Cell("–")
    key = f"{row['metric']}.{row['kind']}.accuracy"
    return replace(number(row["accuracy"], key), below=f"{row['right']} of {row['pairs']}")


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
