"""Models as engines serve them: a table beside the leaderboard, and which pruned ones are not faster."""

from collections.abc import Iterator, Sequence

from compression_assets.evaluation.metrics import metric
from compression_assets.reporting.parts import Cell, Section, Table, head, number
from compression_assets.reporting.read import ReportData, Results
from compression_assets.study.leaderboard_models import ServedModel, served_models
from compression_assets.study.orderings import StepPath, technique_of
from compression_assets.tables import significant

COLUMNS = {
    "size_mib": "MiB",
    "perplexity": "perplexity",
    "own_perplexity": "here",
    "prompt_tokens_per_second": "reads",
    "tokens_per_second": "writes",
    "tokens_per_second_at_8": "8 at once",
    "resident_mib": "memory",
}
"""Metric -> what its column is called."""
WITH_INTERVAL = ("perplexity",)
SPEED = "tokens_per_second"
PRUNING = "P"


def served_table(data: Results, of: StepPath | None = None) -> Table | None:
    """A row a served model, in the study's order; None where nothing is measured in an engine.

    of: only forms of the model with this path.
    """
    served = [
        one.key for one in served_models(data.study) if of in (None, one.path) and one.key in data.served
    ]
    if not served:
        return None
    rows = [[head(data.name(model)), *(_cell(data, model, name) for name in COLUMNS)] for model in served]
    caption = (
        f"In {'; in '.join(dict.fromkeys(_where(data, model) for model in served))}. Perplexity of the same "
        f"tokens, with its {data.confidence} interval; “here”: of the same stored weights, by this package. Tokens/s "
        "that are read of a prompt and written after it, the latter for eight texts at once as well; memory: MiB of "
        "the engine's process."
    )
    return Table(caption, ["model", *COLUMNS.values()], rows, key="serving")


def in_engines(data: ReportData) -> Section:
    """The section of the page; only of a study that serves something."""
    table = served_table(data)
    title = "In the engines that serve it"
    if table is None:
        return Section("serving", title, missing="Nothing of `evaluation.serving` has been measured yet.")
    return Section("serving", title, tables=[table], points=not_faster(data))


def not_faster(data: Results) -> list[str]:
    """A sentence for each pruned model that does not write faster than one with all its weights, in the same form."""
    return list(_not_faster(data, [one for one in served_models(data.study) if one.key in data.served]))


def _not_faster(data: Results, served: Sequence[ServedModel]) -> Iterator[str]:
    for model in served:
        if not _pruned(model):
            continue
        whole = [one for one in served if not _pruned(one) and one.settings.form == model.settings.form]
        # The same steps without P where there is such a model, else whichever stands first.
        whole.sort(key=lambda one: len(set(one.path) ^ set(model.path)))
        if not whole:
            continue
        own, other = (data.served[one.key][SPEED] for one in (model, whole[0]))
        if own["lo"] <= other["hi"]:
            slower = own["hi"] < other["lo"]
            yield (
                f"{model.title} is pruned and {'slower' if slower else 'not measurably faster'}: "
                f"{significant(own['value'])} tokens/s, and {whole[0].title} writes {significant(other['value'])} "
                + ("(in every run)." if slower else "(slowest and fastest run of each overlap).")
            )


def _pruned(model: ServedModel) -> bool:
    return any(technique_of(token) == PRUNING for token in model.path)


def _where(data: Results, model: str) -> str:
    engine = data.engines[model]
    return f"{engine['engine']} ({engine['version']}, {engine['device']}, {engine['threads']} threads)"


def _cell(data: Results, model: str, name: str) -> Cell:
    row = data.served[model].get(name)
    if row is None:
        return number(None, f"{model}.{name}")
    interval = (row["lo"], row["hi"]) if name in WITH_INTERVAL and row["lo"] is not None else None
    digits = 4 if name == "size_mib" else metric(name).digits
    return number(row["value"], f"{model}.{name}", digits, interval)
