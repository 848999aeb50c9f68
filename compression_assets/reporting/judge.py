"""Section: how the judge did on planted answers, and whether other judges of the same answers agree with it."""

from dataclasses import replace

from compression_assets.evaluation.judging.calibration import ALL
from compression_assets.evaluation.metrics import in_order
from compression_assets.reporting.charts import dots
from compression_assets.reporting.judged_by import introduced, title_of_any
from compression_assets.reporting.parts import Cell, Section, Table, drawn, head, number
from compression_assets.reporting.read import ReportData, Row
from compression_assets.tables import bracketed, fixed

AGREEING = 0.5
"""Rank correlation below which two judges are said to differ."""


def calibration(data: ReportData) -> Section:
    """How the judge did on planted answers: what decides by column, and beside it each kind of answer."""
    title = "Can the judge be trusted?"
    by_kind = data.tables["judge_calibration"]
    rows = [row for row in by_kind if row["kind"] == ALL]
    if not rows:
        return Section("judge", title, missing="No judge has taken its calibration in this study.")
    known = [row for row in rows if row.get("accuracy") is not None]
    who = introduced(str(rows[0]["judge"]), data.study.evaluation.judge)
    table = Table(
        f"Judge: {who}. Pairwise accuracy on planted answers whose order is known, with its 95 % interval; "
        "n: pairs. A column is trusted when the interval lies above the threshold and the accuracy of each kind that "
        "the study demands reaches it. Half of the pairs is what guessing comes to.",
        ["metric", "pairs (n)", "right", "failed", "accuracy", "threshold", "trusted", "detail"],
        [_calibration_row(data, row) for row in rows],
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
                        f"{data.metric(row['metric']).title} (n = {row['pairs']})",
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
    tables = [table, _kinds(data, by_kind), *([_agreement(data)] if data.tables["judge_agreement"] else [])]
    return Section("judge", title, charts=charts, tables=tables)


def disagreements(data: ReportData) -> list[str]:
    """A sentence for each further judge that ranks answers otherwise than the first one."""
    by_judge: dict[str, list[Row]] = {}
    for row in data.tables["judge_agreement"]:
        if row["rho"] is None or row["rho"] < AGREEING:
            by_judge.setdefault(row["other"], []).append(row)
    return [
        f"{other} does not rank answers as {data.judge} does in {', '.join(map(_disagreement, rows))}: where two "
        "judges differ, a small difference in one's score settles nothing."
        for other, rows in by_judge.items()
    ]


def _disagreement(row: Row) -> str:
    name = title_of_any(row["metric"])
    if row["rho"] is None:
        return f"{name} (one of them gives every answer the same score)"
    interval = "" if row["lo"] is None else f" {bracketed((row['lo'], row['hi']), 2)}"
    return f"{name} (rank correlation {fixed(row['rho'], 2)}{interval}, n = {row['n']} answers)"


def _agreement(data: ReportData) -> Table:
    rows = data.tables["judge_agreement"]
    places = {name: place for place, name in enumerate(in_order({row["metric"] for row in rows}))}
    return Table(
        f"Other judges of the same answers against {data.judge}: Spearman's rank correlation over the answers of all "
        "models, with its 95 % interval (bootstrap over questions); and of the pairs of answers to one question that "
        f"the other judge tells apart, the share that {data.judge} puts in the same order.",
        ["other judge", "metric", "answers (n)", "rank correlation", "pairs in the same order"],
        [_agreement_row(row) for row in sorted(rows, key=lambda row: (row["other"], places[row["metric"]]))],
        key="agreement",
    )


def _agreement_row(row: Row) -> list[Cell]:
    key = f"{row['metric']}.{row['other']}"
    share = number(row["right"] / row["pairs"] if row["pairs"] else None, f"{key}.same_order")
    return [
        head(row["other"]),
        Cell(title_of_any(row["metric"])),
        number(row["n"], f"{key}.agreement_n"),
        number(row["rho"], f"{key}.rho", 3, None if row["lo"] is None else (row["lo"], row["hi"])),
        replace(share, below=f"{row['right']} of {row['pairs']}"),
    ]


def _kinds(data: ReportData, rows: list[Row]) -> Table:
    """A row a kind of planted answer, a column a metric."""
    found = {(row["kind"], row["metric"]): row for row in rows if row["kind"] != ALL}
    metrics = in_order({name for _, name in found})
    return Table(
        "Pairs in the right order by kind: what the worse answer does wrong, or what makes the better one hard to "
        "recognise. Of how many pairs in small type; – where a kind says nothing about a metric.",
        ["kind of answer", *(data.metric(name).title for name in metrics)],
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


def _calibration_row(data: ReportData, row: Row) -> list[Cell]:
    name, lo, hi = row["metric"], row.get("lo"), row.get("hi")
    return [
        head(data.metric(name).title),
        number(row.get("pairs"), f"{name}.pairs"),
        number(row.get("right"), f"{name}.right"),
        number(row.get("failed"), f"{name}.failed"),
        number(row.get("accuracy"), f"{name}.accuracy", 3, None if lo is None or hi is None else (lo, hi)),
        number(row.get("threshold"), f"{name}.threshold"),
        Cell("yes" if row["trusted"] else "NO"),
        Cell(str(row.get("detail") or "")),
    ]
