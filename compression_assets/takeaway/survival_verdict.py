"""What a survival sweep comes to: a table, the verdict by a rule that was fixed beforehand, and where the paper lies.

The rule. "Nearest rounding undoes the training" is refuted for a setting if, over at least three seeds, the 95 %
interval of the paired difference nearest - stochastic (log-perplexity of message content) includes zero, or if more
than half of the update survives nearest rounding.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from compression_assets.study.model import Study
from compression_assets.tables import plain
from compression_assets.takeaway.survival_cell import PLAIN

SEEDS_NEEDED = 3
PAPER_STEPS, PAPER_RATE, PAPER_WARMUP = 5196, 1e-4, 50
"""KD in the paper: 20,786 conversations, 2 epochs, 8 a step; learning rate and warm-up of the authors' script."""

Setting = tuple[str, str, float, int]


def report(study: Study, rows: list[dict[str, Any]]) -> str:
    """Text for a terminal: every rounding of every setting, verdicts, and the paper's budget on the same axis."""
    lines = [plain(*table(rows)), ""]
    for setting, cells in by_setting(rows).items():
        start, recipe, rate, tokens = setting
        lines.append(f"{start}, {recipe}, learning rate {rate:g}, {tokens} tokens: {verdict(cells)}")
    return "\n".join([*lines, "", *placing_the_paper(rows)])


def by_setting(rows: list[dict[str, Any]]) -> dict[Setting, list[dict[str, Any]]]:
    """(start, recipe, learning rate, tokens) -> rows of all its seeds and roundings, in order."""
    found: dict[Setting, list[dict[str, Any]]] = defaultdict(list)
    order = ("start", "recipe", "tokens", "learning_rate", "seed")
    for row in sorted(rows, key=lambda row: [row[name] for name in order]):
        found[row["start"], row["recipe"], row["learning_rate"], row["tokens"]].append(row)
    return dict(found)


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Means over seeds, one line for each setting and rounding."""
    columns = [
        *("start", "recipe", "lr", "tokens", "rounding", "seeds", "perplexity", "codes_changed"),
        *("surviving", "predicted", "if_random", "if_steady", "update_rms", "half_bin"),
    ]
    lines = []
    for (start, recipe, rate, tokens), cells in by_setting(rows).items():
        for rounding in dict.fromkeys(row["rounding"] for row in cells):
            own = [row for row in cells if row["rounding"] == rounding]
            means = [
                _mean(own, name)
                for name in (
                    *(
                        "codes_changed",
                        "surviving",
                        "predicted",
                        "predicted_if_random",
                        "predicted_if_steady",
                    ),
                    *("update_rms", "half_bin"),
                )
            ]
            perplexity = f"{math.exp(fmean(row['log_perplexity'] for row in own)):.2f}"
            shown = [None if mean is None else f"{mean:.3g}" for mean in means]
            lines.append((start, recipe, f"{rate:g}", tokens, rounding, len(own), perplexity, *shown))
    return columns, lines


def verdict(cells: list[dict[str, Any]]) -> str:
    """One sentence about one setting; the rule is for trainings that began on the grid, others are their controls."""
    difference = paired_difference(cells, "nearest", "stochastic")
    surviving = _mean([row for row in cells if row["rounding"] == "nearest"], "surviving")
    if surviving is None or not difference:
        return "no verdict: there is no update, or no seed with both roundings"
    shown = f"nearest - stochastic {fmean(difference):+.4f} nats"
    if len(difference) < SEEDS_NEEDED:
        return (
            f"no verdict from {len(difference)} of {SEEDS_NEEDED} seeds ({shown}, {surviving:.3f} survives)"
        )
    low, high = t_interval(difference)
    by_items = item_interval(cells, "nearest", "stochastic")
    shown += (
        f" (95 % interval {low:+.4f} to {high:+.4f} over {len(difference)} seeds, {by_items[0]:+.4f} to "
        f"{by_items[1]:+.4f} over conversations), {surviving:.3f} survives"
    )
    if all(row["predicted"] is None for row in cells if row["rounding"] == "nearest"):
        return f"control, never on the grid: {shown}"
    if low <= 0 <= high:
        return f"refuted, the interval includes zero: {shown}"
    if surviving > 0.5:
        return f"refuted, more than half of the update survives: {shown}"
    return f"{'not refuted' if low > 0 else 'not refuted by the rule, but nearest is better'}: {shown}"


def paired_difference(cells: list[dict[str, Any]], first: str, second: str) -> list[float]:
    """log-perplexity of one rounding minus that of another, for each seed that has both."""
    values = {(row["seed"], row["rounding"]): row["log_perplexity"] for row in cells}
    seeds = sorted({seed for seed, _ in values})
    return [
        values[seed, first] - values[seed, second]
        for seed in seeds
        if (seed, first) in values and (seed, second) in values
    ]


def item_interval(cells: list[dict[str, Any]], first: str, second: str) -> tuple[float, float]:
    """Bootstrap interval over conversations of the same difference, each conversation's mean over seeds."""
    import numpy as np

    from compression_assets.evaluation.settings import StatisticsSettings
    from compression_assets.evaluation.statistics import bootstrap

    found = {(row["seed"], row["rounding"]): row["nll"] for row in cells}
    pairs = [(found[seed, first], found[seed, second]) for seed, name in found if name == first]
    items = list(pairs[0][0])
    gains = np.array([fmean(a[item][0] - b[item][0] for a, b in pairs) for item in items])
    tokens = np.array([pairs[0][0][item][1] for item in items], dtype=np.float64)

    if np.ptp(gains / tokens) == 0:  # no resample differs from another
        return float(gains[0] / tokens[0]), float(gains[0] / tokens[0])

    def statistic(gains: Any, tokens: Any, axis: int) -> Any:
        return gains.sum(axis) / tokens.sum(axis)

    low, high = bootstrap((gains, tokens), statistic, StatisticsSettings(), seed=0)
    return float(low), float(high)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of at least two values."""
    import numpy as np
    from scipy import stats

    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return mean - reach, mean + reach


def placing_the_paper(rows: list[dict[str, Any]]) -> list[str]:
    """The size of the paper's updates on this sweep's axis: bounds by Adam's steps, and extrapolated from the rows.

    Updates grow as learning rate x steps^g, g between 1/2 (signs at random) and 1 (always the same). g is fitted where
    the sweep has runs of at least two lengths; the paper's is far outside of them.
    """
    from compression_assets.evaluation.survival import adam_rms_bounds
    from compression_assets.training.schedule import TrainingRecipe, learning_rate

    recipe = TrainingRecipe(
        epochs=2,
        learning_rate=PAPER_RATE,
        warmup_steps=PAPER_WARMUP,
        batch_size=2,
        gradient_accumulation=4,
        max_grad_norm=0.5,
    )
    low, high = adam_rms_bounds([learning_rate(recipe, step, PAPER_STEPS) for step in range(PAPER_STEPS)])
    measured = [
        row
        for row in rows
        if (row["rounding"], row["recipe"]) == ("nearest", PLAIN) and row["predicted"] is not None
    ]
    lines = [
        f"the paper's budget ({PAPER_STEPS:,} steps at {PAPER_RATE:g}): updates between {low:.2g} and {high:.2g} "
        "in the root mean square by Adam's bounds"
    ]
    if not measured:
        return lines
    half_bin = fmean(row["half_bin"] for row in measured)
    largest = max(measured, key=lambda row: row["update_rms"])
    lines.append(
        f"half a bin of this model is {half_bin:.2g} on average; the largest updates of this sweep are "
        f"{largest['update_rms']:.2g}, of which {largest['surviving']:.3f} survives nearest rounding"
    )
    exponent = _growth(measured)
    if exponent is not None:
        scale = fmean(
            row["update_rms"] / (row["learning_rate"] * row["steps"] ** exponent) for row in measured
        )
        guess = scale * PAPER_RATE * PAPER_STEPS**exponent
        lines.append(
            f"extrapolated from runs of {min(r['steps'] for r in measured)} to {max(r['steps'] for r in measured)} "
            f"steps (growth as steps^{exponent:.2f}): {guess:.2g}"
        )
    return lines


def _growth(measured: list[dict[str, Any]]) -> float | None:
    """Slope of log(update / learning rate) over log(steps), over learning rates that have runs of several lengths."""
    slopes = []
    for rate in {row["learning_rate"] for row in measured}:
        by_steps: dict[int, list[float]] = defaultdict(list)
        for row in measured:
            if row["learning_rate"] == rate:
                by_steps[row["steps"]].append(row["update_rms"])
        if len(by_steps) > 1:
            short, long = min(by_steps), max(by_steps)
            slopes.append(math.log(fmean(by_steps[long]) / fmean(by_steps[short])) / math.log(long / short))
    return fmean(slopes) if slopes else None


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return fmean(values) if values else None
