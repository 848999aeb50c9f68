"""What the data of a study cannot support, in sentences: each derived from the data, absent where it does not hold."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from compression_assets.evaluation.end_of_turn import METRIC, unlearned
from compression_assets.evaluation.metrics import JUDGED, SPEED, in_order, metric
from compression_assets.reporting.parts import sentence
from compression_assets.reporting.read import Results, Row
from compression_assets.tables import significant

FEW = 100
"""Items under which a mean is called small."""

SILENT = 0.05
"""Share of empty answers from which a model is named."""

NAMED = 6
"""Pairs of models that a sentence names before it counts the rest."""

PAPER_PARAMETERS = 3_085_938_688
"""Of Qwen2.5-3B, which the paper compresses."""
PAPER_TOKENS = 20_000_000
"""Of the paper's distillation: 20,786 conversations of UltraChat of some 500 tokens, twice (the authors' scripts)."""
OF_THE_SAME_ORDER = 2
"""Models and budgets that differ by less than this factor are compared without a warning."""


def caveats(data: Results) -> list[str]:
    """Sentences, the gravest first."""
    return [
        *_meaningless(data),
        *_outdated(data),
        *_damaged(data),
        *_unfinished(data),
        *_judge(data),
        *_intervals(data),
        *_silent(data),
        *_clear_but_wrong(data),
        *_few_items(data),
        *_failures(data),
        *_refused(data),
        *_runs_on(data),
        *_one_seed(data),
        *_in_domain(data),
        *_other_scale(data),
    ]


def _meaningless(data: Results) -> Iterator[str]:
    if data.study.base_model.kind == "random":
        yield "The base model has random weights: the graph ran, but none of these numbers means anything."


def _outdated(data: Results) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for model, why in data.outdated.items():
        by_reason.setdefault(why, []).append(data.name(model))
    for why, models in by_reason.items():
        yield f"Figures of {', '.join(models)} are left out ({why}): run the study again."


def _damaged(data: Results) -> Iterator[str]:
    for what, why in data.damaged.items():
        yield f"{what} is left out, since it cannot be read ({why}): run the study again."


def _unfinished(data: Results) -> Iterator[str]:
    absent = [ordering.text for ordering in data.study.parsed_orderings if ordering.key not in data.metrics]
    if absent:
        yield f"Not measured yet: {', '.join(absent)}. Every ranking is among the others only."


def _judge(data: Results) -> Iterator[str]:
    judged = in_order({name for name in data.measured if metric(name).group == JUDGED})
    failed = [data.metric(name).title for name in judged if name in data.untrusted]
    if failed:
        yield sentence(
            f"{', '.join(failed)} come from a judge that failed its own test: do not rank models by them."
        )
    untested = [data.metric(name).title for name in judged if name not in data.untrusted]
    if untested and "judge_accuracy" not in data.measured:
        yield sentence(f"{', '.join(untested)} come from a judge that took no test.")
    by_note: dict[str, list[str]] = {}
    for name, note in data.weaknesses.items():
        by_note.setdefault(note, []).append(data.metric(name).title)
    for note, titles in by_note.items():
        yield sentence(f"{', '.join(titles)}: the judge passed its test, but is {note}.")


def _intervals(data: Results) -> Iterator[str]:
    known = {model: interval for model in data.models if (interval := data.interval(model, "perplexity"))}
    if not known:
        yield "No intervals have been computed: small differences between models may be chance."
        return
    pairs = list(combinations(known, 2))
    overlapping = [
        (one, other)
        for one, other in pairs
        if known[one][0] <= known[other][1] and known[other][0] <= known[one][1]
    ]
    if overlapping:
        yield (
            f"The {data.confidence} intervals of perplexity overlap for {len(overlapping)} of {len(pairs)} pairs of "
            f"models ({_named(data, overlapping)}): these intervals do not settle their order.{_sharper(data)}"
        )


def _sharper(data: Results) -> str:
    """What the paired comparisons add, if they were made."""
    rows = [row for row in data.comparisons if row["metric"] == "perplexity"]
    if not rows:
        return ""
    open_pairs = sum(not row["significant"] for row in rows)
    return f" Compared item by item, {open_pairs} of {len(rows)} pairs stay undecided."


def _named(data: Results, pairs: list[tuple[str, str]]) -> str:
    named = "; ".join(f"{data.name(one)} and {data.name(other)}" for one, other in pairs[:NAMED])
    return named + (f"; and {len(pairs) - NAMED} more" if len(pairs) > NAMED else "")


def _silent(data: Results) -> Iterator[str]:
    shares = {model: data.value(model, "answers_empty") or 0.0 for model in data.models}
    silent = [f"{data.name(model)} {share:.0%}" for model, share in shares.items() if share >= SILENT]
    if silent:
        yield (
            f"Some models give empty answers ({', '.join(silent)} of the questions), which count as finished and "
            "repeat nothing."
        )


def _clear_but_wrong(data: Results) -> Iterator[str]:
    """Pairs of which one is significantly clearer and the other significantly more often right."""
    better: dict[tuple[str, str], dict[str, Row]] = {}
    for row in data.comparisons:
        if row["metric"] in ("clarity", "f1") and row["better"] is not None:
            better.setdefault((row["model_a"], row["model_b"]), {})[row["metric"]] = row
    opposite = [
        (str(rows["clarity"]["better"]), str(rows["f1"]["better"]))
        for rows in better.values()
        if len(rows) == 2 and rows["clarity"]["better"] != rows["f1"]["better"]
    ]
    if opposite:
        yield (
            f"Clarity and F1 point opposite ways for {len(opposite)} pairs of models (clearer, but less often right: "
            f"{_named(data, opposite)}): fluency rewards likely words, loops among them; see the repeated 4-grams."
        )


def _few_items(data: Results) -> Iterator[str]:
    few: dict[tuple[int, str], list[str]] = {}
    for name in in_order(data.measured):
        known = data.metric(name)
        counts = [items[name] for items in data.items.values() if name in items]
        if not known.items or known.group == SPEED or not counts or min(counts) >= FEW:
            continue
        few.setdefault((min(counts), known.items), []).append(known.title)
    if few:
        listed = "; ".join(
            f"{n} {items if n != 1 else items.removesuffix('s')} ({', '.join(titles)})"
            for (n, items), titles in sorted(few.items())
        )
        yield f"Few items stand behind some figures: {listed}."


def _failures(data: Results) -> Iterator[str]:
    """One sentence a metric, however many models lack items of it."""
    failed: dict[str, dict[str, int]] = {}
    for model, rows in data.metrics.items():
        for name, row in rows.items():
            if row.get("n_failed"):
                failed.setdefault(name, {})[model] = row["n_failed"]
    for name, models in failed.items():
        one = next(iter(models))
        note = data.metrics[one][name].get("note")
        count, title = sum(models.values()), data.metric(name).title
        yield (
            f"{count} scores of {title} are missing ({', '.join(map(data.name, models))})"
            f"{f': {note}' if note else ''}; the table samples.{one} has the reason for each item."
        )


def _refused(data: Results) -> Iterator[str]:
    """One sentence for all splits of one source, which were cut together."""
    splits: dict[str, list[str]] = {}
    about: dict[str, dict[str, Any]] = {}
    for directory, manifest in data.manifests.items():
        if manifest.metadata.get("refused"):
            source = str(manifest.metadata["refusals"])
            splits.setdefault(source, []).append(directory.partition("/")[2])
            about[source] = manifest.metadata
    for source, names in splits.items():
        count, named = about[source]["refused"], about[source]["refusals"]
        places = ", ".join(f"{one['where']} (id {one['id']})" for one in named)
        yield (
            f"{count:,} conversations were left out of {', '.join(names)} because the chat template refuses them: "
            f"{places}{', …' if count > len(named) else ''}. The first: {named[0]['reason']}"
        )


def _runs_on(data: Results) -> Iterator[str]:
    low = unlearned({model: data.value(model, METRIC) for model in data.models}, "base")
    if low:
        named = ", ".join(f"{data.name(model)} {value:.4f}" for model, value in low.items())
        yield (
            f"Trained to go on where messages end, so that answers run to their limit: {named} ({METRIC}; the base has "
            f"{data.value('base', METRIC):.4f})."
        )


def _one_seed(data: Results) -> Iterator[str]:
    seeds = {
        manifest.seed
        for manifest in data.manifests.values()
        if manifest.seed is not None and manifest.technique
    }
    if len(seeds) == 1:
        yield (
            f"Every model was trained once, with seed {seeds.pop()}: intervals cover the choice of test items, "
            "not the luck of training."
        )


def _in_domain(data: Results) -> Iterator[str]:
    base, distilled = data.value("base", "perplexity"), data.value("kd", "perplexity")
    same_source = data.study.data.evaluation_chat is None
    if same_source and base is not None and distilled is not None and distilled < base:
        yield (
            "KD alone lowers perplexity below the base because it trains on conversations from the same source as "
            "the test: that is adaptation, not a gain from compression."
        )


def _other_scale(data: Results) -> Iterator[str]:
    """How far the study is from the paper's model and budget, where that is far."""
    if not data.paper:
        return
    parameters = data.value("base", "parameters")
    tokens = max(
        (m.tokens_seen for m in data.manifests.values() if (m.technique or "").partition(":")[0] == "KD"),
        default=0,
    )
    differences = []
    if parameters and _far(parameters, PAPER_PARAMETERS):
        differences.append(
            f"a model of {significant(PAPER_PARAMETERS / 1e6)} M parameters (here {significant(parameters / 1e6)} M)"
        )
    if tokens and _far(tokens, PAPER_TOKENS):
        differences.append(f"some {PAPER_TOKENS / 1e6:.0f} M tokens of distillation ({tokens:,} here)")
    if differences:
        yield (
            f"The paper's figures are of {' and '.join(differences)}: compare directions and multiples of the base, "
            "not values."
        )


def _far(one: float, other: float) -> bool:
    return max(one / other, other / one) >= OF_THE_SAME_ORDER
