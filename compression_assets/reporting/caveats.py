"""What the data of a study cannot support, in sentences: each derived from the data, absent where it does not hold."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from compression_assets.evaluation.end_of_turn import METRIC, unlearned
from compression_assets.reporting.read import ReportData

JUDGED = ("g_eval", "correctness", "relevance", "prompt_alignment")
FEW = 100
"""Items under which a mean is called small."""


def caveats(data: ReportData) -> list[str]:
    """Sentences, the gravest first."""
    return [
        *_meaningless(data),
        *_unfinished(data),
        *_judge(data),
        *_intervals(data),
        *_few_items(data),
        *_failures(data),
        *_refused(data),
        *_runs_on(data),
        *_one_seed(data),
        *_in_domain(data),
        *_other_scale(data),
    ]


def _meaningless(data: ReportData) -> Iterator[str]:
    if data.study.base_model.kind == "random":
        yield "The base model has random weights: the graph ran, but none of these numbers means anything."


def _unfinished(data: ReportData) -> Iterator[str]:
    absent = [ordering.text for ordering in data.study.parsed_orderings if ordering.key not in data.metrics]
    if absent:
        yield f"Not measured yet: {', '.join(absent)}. Every ranking below is among the others only."


def untrusted_metrics(data: ReportData) -> dict[str, str]:
    """Metric -> judge, for metrics on which the judge failed its calibration."""
    return {
        row["metric"]: str(row["judge"]) for row in data.tables["judge_calibration"] if not row["trusted"]
    }


def _judge(data: ReportData) -> Iterator[str]:
    judged = [name for name in JUDGED if any(data.value(model, name) is not None for model in data.models)]
    calibrated = {row["metric"] for row in data.tables["judge_calibration"]}
    untrusted = untrusted_metrics(data)
    if failed := [name for name in judged if name in untrusted]:
        judges = ", ".join(sorted({untrusted[name] for name in failed}))
        yield (
            f"{', '.join(failed)} come from a judge that failed its calibration ({judges}): "
            "do not rank models by them."
        )
    if unknown := [name for name in judged if name not in calibrated]:
        yield f"{', '.join(unknown)} come from a judge whose calibration is not known."


def _intervals(data: ReportData) -> Iterator[str]:
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
        named = "; ".join(f"{data.name(one)} and {data.name(other)}" for one, other in overlapping[:6])
        more = f"; and {len(overlapping) - 6} more" if len(overlapping) > 6 else ""
        yield (
            f"The 95 % intervals of perplexity overlap for {len(overlapping)} of {len(pairs)} pairs of models "
            f"({named}{more}): their order is not settled by these intervals.{_sharper(data)}"
        )


def _sharper(data: ReportData) -> str:
    """What the paired comparisons add, if they were made."""
    rows = [row for row in data.tables["comparisons"] if row["metric"] == "perplexity"]
    if not rows:
        return ""
    open_pairs = sum(row["better"] is None for row in rows)
    return f" Compared item by item, {open_pairs} of {len(rows)} pairs stay undecided."


def _few_items(data: ReportData) -> Iterator[str]:
    few: dict[str, int] = {}
    for rows in data.metrics.values():
        for name, row in rows.items():
            if row["unit"] not in ("MiB", "parameters", "1 or 0") and 1 < row["n"] < FEW:
                few[name] = min(row["n"], few.get(name, row["n"]))
    if few:
        by_count: dict[int, list[str]] = {}
        for name, n in few.items():
            by_count.setdefault(n, []).append(name)
        listed = "; ".join(f"{', '.join(names)} (n = {n})" for n, names in sorted(by_count.items()))
        yield f"Few items stand behind {listed}."


def _failures(data: ReportData) -> Iterator[str]:
    """One sentence a metric, however many models lack items of it."""
    failed: dict[str, dict[str, int]] = {}
    for model, rows in data.metrics.items():
        for name, row in rows.items():
            if row.get("n_failed"):
                failed.setdefault(name, {})[model] = row["n_failed"]
    for name, models in failed.items():
        one = next(iter(models))
        note = data.metrics[one][name].get("note")
        yield (
            f"{sum(models.values())} scores of {name} are missing ({', '.join(map(data.name, models))})"
            f"{f': {note}' if note else ''}; the table samples.{one} has the reason for each item."
        )


def _refused(data: ReportData) -> Iterator[str]:
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


def _runs_on(data: ReportData) -> Iterator[str]:
    low = unlearned({model: data.value(model, METRIC) for model in data.models}, "base")
    if low:
        named = ", ".join(f"{data.name(model)} {value:.4f}" for model, value in low.items())
        yield (
            f"Trained to go on where messages end, so that answers run to their limit: {named} ({METRIC}; the base has "
            f"{data.value('base', METRIC):.4f})."
        )


def _one_seed(data: ReportData) -> Iterator[str]:
    seeds = {manifest.seed for manifest in data.manifests.values() if manifest.seed is not None}
    if len(seeds) == 1:
        yield (
            f"Every model was trained once, with seed {seeds.pop()}: intervals cover the choice of test items, "
            "not the luck of training."
        )


def _in_domain(data: ReportData) -> Iterator[str]:
    base, distilled = data.value("base", "perplexity"), data.value("kd", "perplexity")
    if base is not None and distilled is not None and distilled < base:
        yield (
            "KD alone lowers perplexity below the base because it trains on the same kind of text as the test: "
            "that is adaptation, not a gain from compression."
        )


def _other_scale(data: ReportData) -> Iterator[str]:
    if data.paper and data.study.name != "paper":
        yield (
            "The paper compressed Qwen2.5-3B with a training budget hundreds of times larger: compare directions and "
            "ratios to the base, not values."
        )
