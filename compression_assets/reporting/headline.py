"""Sections at the top of the page: the answer with the ranked orders, and what the figures cannot say."""

from compression_assets.evaluation.metrics import metric
from compression_assets.reporting.answer import Answer, answer_or_why_not, paper_to_base, to_base
from compression_assets.reporting.caveats import caveats
from compression_assets.reporting.charts import dots
from compression_assets.reporting.judge import disagreements
from compression_assets.reporting.leaderboard import title
from compression_assets.reporting.metric_tables import figure, rests_on
from compression_assets.reporting.parts import Chart, Section, Table, drawn, head, number, sentence
from compression_assets.reporting.read import ReportData

HEADING = "In which order?"


def cautions(data: ReportData) -> Section:
    return Section("limits", "What these figures cannot say", points=[*caveats(data), *disagreements(data)])


def the_answer(data: ReportData) -> Section:
    """The best order in a sentence, how sure that is, every order ranked beside the paper's."""
    found = answer_or_why_not(data)
    if isinstance(found, str):
        return Section("answer", HEADING, missing=f"{sentence(found)}.")
    lead, *rest = found.sentences
    return Section(
        "answer",
        HEADING,
        lead=lead,
        intro=" ".join(rest),
        charts=[_chart(data, found)],
        tables=[ranked(data, found)],
    )


def ranked(data: ReportData, found: Answer) -> Table:
    """At most eight columns: the goal's metric, perplexity to the base's here and in the paper, size here and there."""
    best = data.study.goal.best
    theirs = bool(data.paper)
    columns = [
        "model",
        "here" if best == "perplexity" else title(data, best),
        "÷ base",
        *(["paper ÷ base"] * theirs),
        "MiB",
        "smaller",
        *(["paper's smaller"] * theirs),
    ]
    rows = []
    for model in found.ranked:
        row = [
            head(data.name(model)),
            figure(data, model, best),
            number(to_base(data, model), f"{model}.relative"),
            number(data.value(model, "size_mib"), f"{model}.size_mib", 4),
            number(data.value(model, "compression_ratio"), f"{model}.compression_ratio"),
        ]
        if theirs:
            row.insert(3, number(paper_to_base(data, model), f"{model}.relative.paper"))
            row.append(number(_paper_ratio(data, model), f"{model}.compression_ratio.paper"))
        rows.append(row)
    caption = (
        f"The best first, by {title(data, best)} ({metric(best).direction}); in brackets its {data.confidence} "
        f"interval over test items. ÷ base: perplexity as a multiple of the base's; smaller: how many times smaller "
        f"the file is than the base's. {rests_on(data, best)}"
        f"{' Paper: the same of arXiv 2511.19495, Table 1.' if theirs else ''}"
    )
    marked = found.ranked.index(found.choice.model) if found.choice.model else None
    others = [("perplexity", 2 + theirs)] if best == "perplexity" else [("", 1), ("perplexity", 1 + theirs)]
    groups = [("", 1), *others, ("size", 2 + theirs)]
    return Table(caption, columns, rows, key="answer", groups=groups, marked=marked)


def _paper_ratio(data: ReportData, model: str) -> float | None:
    own, base = data.paper.get(model), data.paper.get("base")
    return base["size_mib"] / own["size_mib"] if own and base else None


def _chart(data: ReportData, found: Answer) -> Chart:
    """A dot with a whisker for each order, the paper's beside it, as multiples of the base where it is perplexity."""
    best = data.study.goal.best
    relative = best == "perplexity" and data.value("base", best) is not None
    unit = data.metrics["base"][best]["value"] if relative else 1.0
    rows, intervals = [], {}
    for model in found.ranked:
        paper = paper_to_base(data, model) if relative else data.paper.get(model, {}).get(best)
        rows.append((model, data.name(model), data.metrics[model][best]["value"] / unit, paper))
        if interval := data.to_base.get(model) if relative else data.interval(model, best):
            intervals[model] = interval
    what = "perplexity as a multiple of the base's" if relative else title(data, best)
    known = metric(best)
    over = "test items, of this multiple" if relative else "test items"
    caption = (
        f"Every order, the best first: {what}, {known.direction}. Filled circles: this study, with the "
        f"{data.confidence} interval over {over}; open diamonds: the paper. {rests_on(data, best)}"
    )
    return drawn(
        "answer",
        dots,
        rows,
        what,
        ("this study", "paper"),
        caption=caption,
        logarithmic=best == "perplexity",
        line=1.0 if relative else None,
        intervals=intervals,
    )
