"""The answer that a study gives: the best order under its goal, what it costs, and whether that is settled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.evaluation.metrics import JUDGED, metric
from compression_assets.reporting.choosing import Choice, Limits, choose
from compression_assets.reporting.leaderboard import left_out, places_of, remarks, with_interval
from compression_assets.reporting.parts import sentence
from compression_assets.reporting.read import Results, Row, read_results
from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.study.model import Study
from compression_assets.tables import fixed, plain, significant

PERPLEXITY, SIZE, BASE = "perplexity", "size_mib", "base"


@dataclass(frozen=True)
class Answer:
    """sentences: the best order first, then how it compares with the base and the paper, then what is not settled.

    ranked: every measured model, the best in the goal's metric first.
    """

    choice: Choice
    sentences: tuple[str, ...]
    ranked: tuple[str, ...]


def answer(study: Study, root: Path, database: MetricsDatabase) -> str:
    """The answer as a few lines and a ranked table, for the end of a run. root: storage/<study>.

    Raises StudyError while nothing is measured that the goal could be applied to.
    """
    results = read_results(study, root, database)
    found = answer_of(results)
    judged = metric(study.goal.best).group == JUDGED
    marked = [
        *found.sentences,
        "",
        plain(*ranked_table(results, found)),
        *(remarks if judged else left_out)(results),
    ]
    return "\n".join(marked)


def answer_of(results: Results) -> Answer:
    """The best order under the study's goal, from what was measured so far. Raises what `choose` raises."""
    goal = results.study.goal
    choice = choose(results.rows, Limits.of(goal), goal.best)
    ranked = _ranked(results, goal.best)
    if choice.model is None:
        return Answer(choice, (sentence(choice.why) + ".",), ranked)
    sentences = [
        _best(results, choice),
        _beside_base(results, choice.model),
        _beside_paper(results, choice),
        _settled(results, choice),
        _unfinished(results),
        _meaning(results),
    ]
    return Answer(choice, tuple(sentence for sentence in sentences if sentence), ranked)


def ranked_table(results: Results, found: Answer) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: rank, model, the goal's metric, perplexity to the base's here and in the paper, size."""
    best = results.study.goal.best
    columns = ["", "model", results.metric(best).label, "size (MiB)", "smaller than base"]
    values = [results.value(model, best) for model in found.ranked]
    places = places_of(results, best, found.ranked)
    rows: list[list[Any]] = [
        [
            place,
            results.name(model) + (" ←" if model == found.choice.model else ""),
            None if value is None else with_interval(value, results.interval(model, best), places),
            results.value(model, SIZE),
            times(results.value(model, "compression_ratio")),
        ]
        for place, (model, value) in enumerate(zip(found.ranked, values, strict=True), start=1)
    ]
    if relative := {model: to_base(results, model) for model in found.ranked}:
        columns += ["perplexity to base", "in the paper"]
        for row, model in zip(rows, found.ranked, strict=True):
            row += [times(relative[model]), times(paper_to_base(results, model))]
    return columns, rows


def to_base(results: Results, model: str) -> float | None:
    """Perplexity as a multiple of the base's."""
    own, base = results.value(model, PERPLEXITY), results.value(BASE, PERPLEXITY)
    return None if own is None or base is None else own / base


def paper_to_base(results: Results, model: str) -> float | None:
    """The same in the paper, None for an order that it does not have."""
    own, base = results.paper.get(model), results.paper.get(BASE)
    return own[PERPLEXITY] / base[PERPLEXITY] if own and base else None


def times(factor: float | None) -> str | None:
    """Such as "1.70×"."""
    return None if factor is None else f"{fixed(factor, 2 if factor < 10 else 1)}×"


def _ranked(results: Results, best: str) -> tuple[str, ...]:
    sign = -1 if metric(best).higher_is_better else 1
    known = [
        (sign * value, model) for model in results.models if (value := results.value(model, best)) is not None
    ]
    places = {model: place for place, model in enumerate(results.models)}
    return tuple(model for _, model in sorted(known, key=lambda pair: (pair[0], places[pair[1]])))


def figure(results: Results, model: str, name: str) -> str:
    """A metric of a model in a sentence: "84.4 [72.0, 98.2]"."""
    value = results.metrics[model][name]["value"]
    return with_interval(value, results.interval(model, name), places_of(results, name, [model]))


def _best(results: Results, choice: Choice) -> str:
    model, best = str(choice.model), results.study.goal.best
    limits = Limits.of(results.study.goal)
    title = results.metric(best).title
    among = len(choice.rivals)
    of = f"of {among} models" if SIZE in limits.most else f"of {among} equally small models"
    where = f" with {_limits(results, limits)}" if limits.metrics else ""
    best_of = sum(results.value(rival, best) == results.value(model, best) for rival in choice.rivals)
    if among == 1:
        admitted = sum(not limits.misses(row) for row in results.rows)
        what = f"is the {'smallest' if admitted > 1 else 'only'} model"
    else:
        what = (
            f"has the best {title} {of}"
            if best_of == 1
            else f"is the first of {best_of} with the best {title} {of}"
        )
    return (
        f"{results.name(model)} {what}{where}: {title} {figure(results, model, best)}"
        f"{_dagger(results, best)} at {significant(results.metrics[model][SIZE]['value'], 4)} MiB."
    )


def _dagger(results: Results, name: str) -> str:
    return " (scored by a judge that failed its own test)" if name in results.untrusted else ""


def _limits(results: Results, limits: Limits) -> str:
    most = [f"{results.metric(name).title} at most {limit:g}" for name, limit in limits.most.items()]
    return ", ".join(
        [*most, *(f"{results.metric(name).title} at least {limit:g}" for name, limit in limits.least.items())]
    )


def _beside_base(results: Results, model: str) -> str:
    relative, ratio = to_base(results, model), results.value(model, "compression_ratio")
    if model == BASE or relative is None or ratio is None:
        return ""
    theirs, theirs_base = results.paper.get(model), results.paper.get(BASE)
    paper = ""
    if theirs and theirs_base:
        paper = (
            f"; in the paper {times(theirs[PERPLEXITY] / theirs_base[PERPLEXITY])} "
            f"at {times(theirs_base[SIZE] / theirs[SIZE])}"
        )
    return f"That is {times(relative)} the base's perplexity in a file {times(ratio)} smaller{paper}."


def _beside_paper(results: Results, choice: Choice) -> str:
    theirs = {model: results.paper[model][PERPLEXITY] for model in choice.rivals if model in results.paper}
    if len(theirs) < 2 or results.study.goal.best != PERPLEXITY:
        return ""
    best = min(theirs, key=lambda model: theirs[model])
    if best == choice.model:
        return f"It is also the paper's best of these {len(theirs)} orders."
    return f"The paper's best of these {len(theirs)} orders is {results.name(best)}."


def _settled(results: Results, choice: Choice) -> str:
    """Whether the best model is told apart from the next one, by the paired comparison over the same items."""
    orders = {results.name(model).partition("@")[0]: model for model in reversed(choice.rivals)}
    if len(orders) < 2:
        return ""
    best, first = results.study.goal.best, choice.rivals[0]
    # The next order, not the same one with another seed.
    second = next(model for model in choice.rivals if model in orders.values() and model != first)
    after = f"The next one is {results.name(second)} ({figure(results, second, best)})"
    row = comparison(results, best, first, second)
    if row is None or row["difference"] is None:
        return f"{after}; the two have not been compared item by item, so the order is not settled."
    p_value = f"p = {significant(row['p_holm'], 2)} after Holm's correction"
    if row["significant"]:
        return f"{after}; over the same items the difference is settled ({p_value}), for this seed."
    return f"{after}; over the same items the difference is NOT settled ({p_value})."


def comparison(results: Results, name: str, one: str, other: str) -> Row | None:
    """The row of the table `comparisons` for two models, in whichever order they stand there."""
    return next(
        (
            row
            for row in results.comparisons
            if row["metric"] == name and {row["model_a"], row["model_b"]} == {one, other}
        ),
        None,
    )


def _unfinished(results: Results) -> str:
    listed = [ordering.key for ordering in results.study.parsed_orderings]
    measured = [key for key in listed if key in results.metrics]
    if len(measured) == len(listed):
        return ""
    return f"So far {len(measured)} of {len(listed)} orders have been measured."


def _meaning(results: Results) -> str:
    if results.study.base_model.kind != "random":
        return ""
    return "The base model has random weights, so none of this means anything."


def answer_or_why_not(results: Results) -> Answer | str:
    """The answer, or the sentence that says why there is none yet."""
    try:
        return answer_of(results)
    except StudyError as error:
        return str(error)
