"""Section: every metric of every model, a table a question; the paper's own figures beside ours."""

from collections.abc import Sequence

from compression_assets.evaluation.metrics import (
    ANSWERS,
    CLARITY,
    FOUR_BIT,
    JUDGED,
    LANGUAGE,
    SIZE,
    SPEED,
    TASKS,
    metric,
)
from compression_assets.reporting.answer import paper_to_base, to_base
from compression_assets.reporting.judged_by import introduced
from compression_assets.reporting.leaderboard import by_group, title
from compression_assets.reporting.parts import Cell, Section, Table, head, number, sentence, span
from compression_assets.reporting.read import ReportData, Results

MOST_COLUMNS = 8
QUESTIONS = {
    LANGUAGE: "How well does it predict text?",
    ANSWERS: "Does it answer questions?",
    CLARITY: "How do its answers read?",
    JUDGED: "What does the judge say?",
    TASKS: "How does it do in the harness's tasks?",
    SPEED: "How fast is it?",
    SIZE: "How large is it?",
    FOUR_BIT: "Is the quantized model itself the one that was scored?",
}


def every_metric(data: ReportData) -> Section:
    """At most eight columns a table, grouped by question."""
    tables = [table for names in by_group(data) for table in _tables(data, names)]
    return Section("leaderboard", "Every model in every metric", tables=tables)


def _tables(data: ReportData, names: Sequence[str]) -> list[Table]:
    """One or more tables of one group of metrics."""
    tables: list[Table] = []
    waiting = list(names)
    while waiting:
        blocks: list[list[Block]] = []
        while waiting and sum(map(len, blocks)) + len(_blocks(data, waiting[0])) < MOST_COLUMNS:
            blocks.append(_blocks(data, waiting.pop(0)))
        tables.append(_table(data, blocks, continued=bool(tables)))
    return tables


Block = tuple[str, str, list[Cell]]
"""(metric, column's title, a cell a model)."""


def _blocks(data: ReportData, name: str) -> list[Block]:
    """The columns of one metric: ours, the paper's; of perplexity also both as multiples of the base's."""
    known = metric(name)
    columns: list[Block] = [(name, "here", [figure(data, model, name) for model in data.models])]
    theirs = known.in_paper and bool(data.paper)
    if name == "perplexity":
        columns.append((name, "÷ base", [_relative(data, model, paper=False) for model in data.models]))
    if theirs:
        columns.append((name, "paper", [_paper(data, model, name) for model in data.models]))
        if name == "perplexity":
            columns.append(
                (name, "paper ÷ base", [_relative(data, model, paper=True) for model in data.models])
            )
    return columns


def _table(data: ReportData, blocks: Sequence[Sequence[Block]], *, continued: bool) -> Table:
    columns = [column for block in blocks for column in block]
    names = [block[0][0] for block in blocks]
    grouped = any(len(block) > 1 for block in blocks)
    heads = [title(data, name) for name in names]
    group = metric(names[0]).group
    return Table(
        f"{QUESTIONS[group]} {_caption(data, names)}",
        ["model", *([heading for _, heading, _ in columns] if grouped else heads)],
        [
            [head(data.name(model)), *(cells[place] for _, _, cells in columns)]
            for place, model in enumerate(data.models)
        ],
        key=group.replace(" ", "_") + ("_more" if continued else ""),
        groups=[("", 1), *((text, len(block)) for text, block in zip(heads, blocks, strict=True))]
        if grouped
        else (),
    )


def figure(data: ReportData, model: str, name: str) -> Cell:
    """A metric of a model with its interval."""
    return number(data.value(model, name), f"{model}.{name}", metric(name).digits, data.interval(model, name))


def _paper(data: ReportData, model: str, name: str) -> Cell:
    return number(data.paper.get(model, {}).get(name), f"{model}.{name}.paper", metric(name).digits)


def _relative(data: ReportData, model: str, *, paper: bool) -> Cell:
    value = paper_to_base(data, model) if paper else to_base(data, model)
    return number(value, f"{model}.relative" + (".paper" if paper else ""))


def _caption(data: ReportData, names: Sequence[str]) -> str:
    intervals = any(data.interval(model, name) for model in data.models for name in names)
    speed = all(metric(name).group == SPEED for name in names)
    said = (
        "the lowest and the highest of the runs"
        if speed
        else f"the {data.confidence} interval over test items"
    )
    theirs = data.paper and any(metric(name).in_paper for name in names)
    untrusted = data.untrusted.keys() & set(names)
    judged = any(metric(name).group == JUDGED for name in names)
    who = introduced(data.judge, data.study.evaluation.judge) if judged else ""
    parts = [
        f"In brackets: {said}." if intervals else "",
        rests_on(data, *names),
        _directions(data, names),
        _conditions(data, names) if speed else "",
        "“paper”: arXiv 2511.19495, Table 1." if theirs else "",
        f"Judge: {who}." if who else "",
        "† Scored by a judge that failed its own test: NOT to be trusted." if untrusted else "",
    ]
    return " ".join(filter(None, parts))


def _directions(data: ReportData, names: Sequence[str]) -> str:
    by_direction: dict[str, list[str]] = {}
    for name in names:
        known = data.metric(name)
        by_direction.setdefault(known.direction, []).append(known.title)
    if len(by_direction) == 1:
        (direction,) = by_direction
        return f"{direction.capitalize()}."
    said = "; ".join(f"{', '.join(titles)}: {direction}" for direction, titles in by_direction.items())
    return f"{sentence(said)}."


def _conditions(data: ReportData, names: Sequence[str]) -> str:
    """What was timed: the notes of the rows, each once."""
    notes: dict[str, list[str]] = {}
    for model in data.models:
        if note := data.metrics[model].get(names[0], {}).get("note"):
            notes.setdefault(note, []).append(data.name(model))
    return " ".join(
        f"{', '.join(models) if len(notes) > 1 else 'Timed'}: {note}." for note, models in notes.items()
    )


def rests_on(data: Results, *names: str) -> str:
    """How many items metrics rest on, and how many tokens where these are counted: "n = 26 conversations"."""
    by_count: dict[str, list[str]] = {}
    for name in names:
        counts = sorted({items[name] for items in data.items.values() if name in items})
        known = data.metric(name)
        if not known.items or not counts:
            continue
        tokens = sorted({rows[name]["n"] for rows in data.metrics.values() if name in rows})
        more = f" ({span(tokens)} tokens)" if known.group == LANGUAGE and tokens != counts else ""
        by_count.setdefault(f"n = {span(counts)} {known.items}{more}", []).append(known.title)
    if len(by_count) == 1:
        return f"{next(iter(by_count))}."
    said = "; ".join(f"{', '.join(titles)}: {count}" for count, titles in by_count.items())
    return f"{sentence(said)}." if said else ""
