"""Section: perplexity after each step of every ordering, and where an order breaks."""

from compression_assets.reporting.charts import by_step
from compression_assets.reporting.metric_tables import rests_on
from compression_assets.reporting.parts import Cell, Section, Table, drawn, head
from compression_assets.reporting.read import ReportData
from compression_assets.tables import significant


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
                Cell(f"{step} {significant(value) if value is not None else '–'}", f"{name}.{place}", value)
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
    """Model of the prefix tree -> perplexity: all from step_diagnostics if it has any (it may score fewer tokens)."""
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
    return f"n = {max(tokens):,} tokens." if tokens else rests_on(data, "perplexity")
