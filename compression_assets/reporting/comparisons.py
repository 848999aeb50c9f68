"""Section: paired differences between models, a matrix a metric."""

from compression_assets.evaluation.metrics import in_order
from compression_assets.reporting.leaderboard import title
from compression_assets.reporting.parts import Cell, Section, Table, head, number, sentence, span
from compression_assets.reporting.read import ReportData, Row

Pairs = dict[tuple[str, str], Row]


def comparisons(data: ReportData) -> Section:
    """A matrix for each metric that tells some pair apart; the others in one line."""
    heading = "Which differences are real"
    by_metric: dict[str, Pairs] = {}
    for row in data.comparisons:
        by_metric.setdefault(row["metric"], {})[row["model_a"], row["model_b"]] = row
    if not by_metric:
        return Section("comparisons", heading, missing="No paired comparisons in this study.")
    told = {name: _told_apart(pairs) for name, pairs in by_metric.items()}
    intro = (
        "Each cell is the row's model less the column's, over the items that both have. ▲: the row's model "
        "is better, ▼: worse, after Holm's correction for the number of pairs; where neither way is better, ↑ says "
        "more and ↓ less. ○: the data do not tell them apart; –: not comparable. Intervals and p-values: "
        "SELECT * FROM comparisons."
    )
    nothing = [
        f"{title(data, name)} ({_items(by_metric[name])})"
        for name in in_order({n for n in told if not told[n]})
    ]
    points = [f"No pair of models is told apart in {', '.join(nothing)}."] if nothing else []
    shown = in_order({name for name in told if told[name]})
    return Section(
        "comparisons",
        heading,
        intro=intro,
        points=points,
        tables=[_matrix(data, by_metric[name], name) for name in shown],
    )


def _told_apart(pairs: Pairs) -> int:
    """A difference counts although neither way is better: then the mark says which is larger."""
    return sum(bool(row["significant"]) for row in pairs.values())


def _items(pairs: Pairs) -> str:
    return f"n = {span(sorted({row['n'] for row in pairs.values()}))}"


def _matrix(data: ReportData, pairs: Pairs, name: str) -> Table:
    present = {model for pair in pairs for model in pair}
    models = [model for model in data.models if model in present]
    cells = [
        [head(data.name(one)), *(_compared(pairs, one, other, name) for other in models[:-1])]
        for one in models[1:]
    ]
    known = data.metric(name)
    doubt = " † Scored by a judge that failed its own test." if name in data.untrusted else ""
    caption = (
        f"{title(data, name)}, {known.direction}: {_told_apart(pairs)} of {len(pairs)} pairs can be told apart; "
        f"{_items(pairs)} shared {known.items or 'items'}.{doubt}"
    )
    return Table(
        sentence(caption),
        ["model", *(data.name(model) for model in models[:-1])],
        cells,
        key=f"comparisons.{name}",
        one_kind=True,
    )


def _compared(pairs: Pairs, one: str, other: str, name: str) -> Cell:
    """The cell of row `one` and column `other`; the upper half of the matrix would repeat the lower."""
    row = pairs.get((other, one))
    if row is None:
        return Cell(" ")
    if row["difference"] is None:
        return Cell("–")
    difference = -row["difference"]
    return number(difference, f"{name}.{one}.{other}", 3, mark=f"{_sign(row, one, difference)} ")


def _sign(row: Row, one: str, difference: float) -> str:
    if not row["significant"]:
        return "○"
    if row["better"] is None:
        return "↑" if difference > 0 else "↓"
    return "▲" if row["better"] == one else "▼"
