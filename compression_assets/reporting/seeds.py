"""How much training itself varies: every ordering over the seeds that it was made with."""

from compression_assets.reporting.parts import Cell, Section, Table, head, number
from compression_assets.reporting.read import ReportData, Row

SHOWN = ("perplexity", "f1", "g_eval")


def over_seeds(data: ReportData) -> Section | None:
    """Mean and interval of the mean over seeds; None for a study with one seed."""
    rows = {(row["ordering"], row["metric"]): row for row in data.tables["leaderboard_seeds"] if row["n"] > 1}
    if not rows:
        return None
    metrics = [name for name in SHOWN if any(metric == name for _, metric in rows)]
    orderings = list(dict.fromkeys(ordering for ordering, _ in rows))
    counts = sorted({row["n"] for row in rows.values()})
    table = Table(
        f"Mean over {' or '.join(map(str, counts))} seeds, in brackets the 95 % interval of that mean "
        "(Student's t), and the standard deviation between seeds. Intervals over test items are in the tables above.",
        ["ordering", "seeds", *(part for name in metrics for part in (data.metric(name).label, "sd"))],
        [
            [
                head(ordering),
                number(_seeds(rows, ordering), f"{ordering}.seeds"),
                *(
                    cell
                    for name in metrics
                    for cell in (
                        _mean(rows.get((ordering, name)), f"{ordering}.{name}.over_seeds"),
                        _deviation(rows.get((ordering, name)), f"{ordering}.{name}.sd"),
                    )
                ),
            ]
            for ordering in orderings
        ],
        key="seeds",
    )
    return Section("seeds", "The same orders with other seeds", tables=[table])


def _seeds(rows: dict[tuple[str, str], Row], ordering: str) -> float:
    return max(row["n"] for (found, _), row in rows.items() if found == ordering)


def _mean(row: Row | None, key: str) -> Cell:
    return number(None, key) if row is None else number(row["mean"], key, 4, (row["lo"], row["hi"]))


def _deviation(row: Row | None, key: str) -> Cell:
    return number(None if row is None else row["sd"], key, 2)
