"""Does quantizing again erase the training that came before it? Verdicts on a finished study, by a rule fixed before.

    python -m benchmarks.survival --study survival
    python -m benchmarks.survival --study rescue --apart 16

Any study will do that quantizes after a training (Q-KD), in two roundings (Q-KD-Q:stochastic) and with three seeds.
The rule. "Nearest rounding undoes the training" is refuted for a setting if, over at least three seeds, the 95 %
interval of the paired difference nearest - stochastic (log-perplexity of message content) includes zero, or if more
than half of the update survives nearest rounding.
"""

import argparse
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.apart import apart
from benchmarks.common import one_thread
from compression_assets.evaluation.settings import StatisticsSettings
from compression_assets.evaluation.statistics import bootstrap
from compression_assets.evaluation.survival import predict_surviving
from compression_assets.reporting.database import up_to_date
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.study.diagnosed import compared_with
from compression_assets.study.model import Study
from compression_assets.study.names import DATASETS, model_key, relative_directory
from compression_assets.study.orderings import DEQUANTIZATION, Node, recipe_token
from compression_assets.study.places import current_study, study_root
from compression_assets.tables import plain
from compression_assets.text.datasets import TokenDataset
from compression_assets.training.schedule import TrainingRecipe, learning_rate
from compression_assets.weights.checkpoints import quantized_weights
from compression_assets.weights.formats import nf4

SEEDS_NEEDED = 3
PAPER = TrainingRecipe(
    epochs=2,
    learning_rate=1e-4,
    warmup_steps=50,
    batch_size=2,
    gradient_accumulation=4,
    max_grad_norm=0.5,
)
PAPER_STEPS = 5196
"""KD in the paper: 20,786 conversations, 2 epochs, 8 a step; learning rate and warm-up of the authors' script."""
SIZES = (0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.02, 0.04, 0.1)
"""Root mean squares of updates for which the closed form is printed."""


@dataclass(frozen=True)
class Rounded:
    """A model that a Q after a training left, compared with the grid or the weights that the training started from.

    setting: the steps before that Q, without a seed. rounding: "nearest", "stochastic:kept", … nll: conversation ->
    (negative log-likelihood in nats, predicted tokens). learning_rate, steps: of a plain KD that began at the last
    dequantization and is all that lies between; None for any other training. The rest as in the table step_diagnostics.
    """

    setting: str
    rounding: str
    seed: int
    nll: dict[str, tuple[float, float]]
    on_grid: bool
    surviving: float | None
    predicted: float | None
    codes_changed: float
    update_rms: float
    half_bin: float
    learning_rate: float | None = None
    steps: int | None = None

    @property
    def log_perplexity(self) -> float:
        """Mean over predicted tokens, in nats."""
        return math.fsum(nll for nll, _ in self.nll.values()) / sum(tokens for _, tokens in self.nll.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", help="a preset's name or the path of a study file")
    parser.add_argument(
        "--apart", type=int, metavar="RANK", help="also keep updates beside the codes, at this rank"
    )
    options = parser.parse_args()
    if options.study:
        os.environ["COMPRESSION_STUDY"] = options.study
    one_thread()
    study = current_study()
    root = study_root(study)
    rows = read(study, root)
    print(plain(*table(rows)))
    for setting, own in by_setting(rows).items():
        print(f"\n{setting}: {verdict(own)}", end="")
    print("\n\n" + "\n".join([*placing_the_paper(rows), *closed_form(study, root)]))
    if options.apart:
        print("\n" + plain(*kept_apart(study, root, options.apart)))


def read(study: Study, root: Path) -> list[Rounded]:
    """Every measured Q after a training. SystemExit when the study has none yet."""
    (database, _), store = up_to_date(study, root), ArtifactStore(root)
    names, found = database.query(
        "SELECT DISTINCT model, surviving, predicted, codes_changed, update_rms, half_bin, on_grid "
        "FROM step_diagnostics WHERE codes_changed IS NOT NULL"
    )
    diagnosed = {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in found}
    rows = []
    for node in study.nodes.values():
        if node.final is None or node.key not in diagnosed:
            continue
        _, samples = database.query(
            f"SELECT item, value, weight FROM samples.\"{node.key}\" WHERE metric = 'perplexity'"
        )
        assert node.step is not None
        recipe = study.recipe(node.step)
        rows.append(
            Rounded(
                setting="-".join(recipe_token(token) for token in node.path[:-1]),
                rounding=recipe.rounding + (":kept" if recipe.keep_absmax else ""),
                seed=study.seed if node.seed is None else node.seed,
                nll={item: (value, weight) for item, value, weight in samples},
                **diagnosed[node.key],
                **_plain_training(study, store, node),
            )
        )
    if not rows:
        raise SystemExit(f"study {study.name} has no diagnosed Q after a training yet; see docs/findings.md")
    return rows


def _plain_training(study: Study, store: ArtifactStore, node: Node) -> dict[str, Any]:
    """Learning rate and steps, where one KD of all weights is all that lies between D and the node's Q."""
    parent = study.nodes[node.path[:-1]]
    assert parent.step is not None
    recipe = study.recipe(parent.step)
    before = study.nodes[parent.path[:-1]]
    alone = parent.technique == "KD" and before.technique == DEQUANTIZATION
    if not alone or recipe.adapter_rank:
        return {}
    manifest = store.manifest(store.root / relative_directory(model_key(parent)), model_key(parent))
    return {
        "learning_rate": recipe.learning_rate,
        "steps": manifest.metadata["training_steps"] if manifest else None,
    }


def by_setting(rows: Sequence[Rounded]) -> dict[str, list[Rounded]]:
    """Setting -> rows of all its seeds and roundings."""
    found: dict[str, list[Rounded]] = defaultdict(list)
    for row in rows:
        found[row.setting].append(row)
    return dict(found)


def table(rows: Sequence[Rounded]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Means over seeds (geometric of perplexities), one line for each setting and rounding."""
    means = ("codes_changed", "surviving", "predicted", "update_rms", "half_bin")
    lines = []
    for setting, cells in by_setting(rows).items():
        for rounding in dict.fromkeys(row.rounding for row in cells):
            own = [row for row in cells if row.rounding == rounding]
            perplexity = math.exp(fmean(row.log_perplexity for row in own))
            shown = (None if mean is None else f"{mean:.3g}" for mean in (_mean(own, name) for name in means))
            lines.append((setting, rounding, len(own), f"{perplexity:.2f}", *shown))
    return ["trained", "rounding", "seeds", "perplexity", *means], lines


def verdict(cells: Sequence[Rounded]) -> str:
    """One sentence about one setting; the rule is for trainings that began on the grid, others are their controls."""
    difference = paired_difference(cells, "nearest", "stochastic")
    surviving = _mean([row for row in cells if row.rounding == "nearest"], "surviving")
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
    if not any(row.on_grid for row in cells):
        return f"control, never on the grid: {shown}"
    if low <= 0 <= high:
        return f"refuted, the interval includes zero: {shown}"
    if surviving > 0.5:
        return f"refuted, more than half of the update survives: {shown}"
    return f"{'not refuted' if low > 0 else 'not refuted by the rule, but nearest is better'}: {shown}"


def paired_difference(cells: Sequence[Rounded], first: str, second: str) -> list[float]:
    """log-perplexity of one rounding minus that of another, for each seed that has both."""
    return [one.log_perplexity - other.log_perplexity for one, other in _pairs(cells, first, second)]


def _pairs(cells: Sequence[Rounded], first: str, second: str) -> list[tuple[Rounded, Rounded]]:
    found = {(row.seed, row.rounding): row for row in cells}
    seeds = sorted({row.seed for row in cells})
    return [
        (found[seed, first], found[seed, second])
        for seed in seeds
        if (seed, first) in found and (seed, second) in found
    ]


def item_interval(cells: Sequence[Rounded], first: str, second: str) -> tuple[float, float]:
    """Bootstrap interval over conversations of the same difference, each conversation's mean over seeds."""
    import numpy as np

    pairs = _pairs(cells, first, second)
    items = list(pairs[0][0].nll)
    gains = np.array([fmean(one.nll[item][0] - other.nll[item][0] for one, other in pairs) for item in items])
    tokens = np.array([pairs[0][0].nll[item][1] for item in items], dtype=np.float64)
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


def placing_the_paper(rows: Sequence[Rounded]) -> list[str]:
    """The size of the paper's updates beside this study's: bounds by Adam's steps, and extrapolated from the rows.

    A step of Adam is about the learning rate in size, whatever the gradient's: weights that drift to and fro move by
    sqrt(sum lr²), those always pushed the same way by sum lr. So updates grow as learning rate x steps^g, g between
    1/2 and 1; g is fitted where there are trainings of at least two lengths, and the paper's is far outside of them.
    """
    rates = [learning_rate(PAPER, step, PAPER_STEPS) for step in range(PAPER_STEPS)]
    low, high = math.sqrt(math.fsum(rate**2 for rate in rates)), math.fsum(rates)
    lines = [
        f"the paper's budget ({PAPER_STEPS:,} steps at {PAPER.learning_rate:g}): updates between {low:.2g} and "
        f"{high:.2g} in the root mean square by Adam's bounds"
    ]
    measured = [row for row in rows if row.rounding == "nearest" and row.on_grid and row.steps]
    if not measured:
        return lines
    largest = max(measured, key=lambda row: row.update_rms)
    lines.append(
        f"half a bin of this model is {fmean(row.half_bin for row in measured):.2g} on average; the largest updates of "
        f"this study are {largest.update_rms:.2g}, of which {largest.surviving:.3f} survives nearest rounding"
    )
    exponent = _growth(measured)
    if exponent is not None:
        scale = fmean(row.update_rms / (_rate(row) * _steps(row) ** exponent) for row in measured)
        guess = scale * PAPER.learning_rate * PAPER_STEPS**exponent
        lines.append(
            f"extrapolated from runs of {min(map(_steps, measured))} to {max(map(_steps, measured))} "
            f"steps (growth as steps^{exponent:.2f}): {guess:.2g}"
        )
    return lines


def _growth(measured: Sequence[Rounded]) -> float | None:
    """Slope of log(update / learning rate) over log(steps), over learning rates that have runs of several lengths."""
    slopes = []
    for rate in {_rate(row) for row in measured}:
        by_steps: dict[int, list[float]] = defaultdict(list)
        for row in measured:
            if _rate(row) == rate:
                by_steps[_steps(row)].append(row.update_rms)
        if len(by_steps) > 1:
            short, long = min(by_steps), max(by_steps)
            slopes.append(math.log(fmean(by_steps[long]) / fmean(by_steps[short])) / math.log(long / short))
    return fmean(slopes) if slopes else None


def _rate(row: Rounded) -> float:
    assert row.learning_rate is not None
    return row.learning_rate


def _steps(row: Rounded) -> int:
    assert row.steps is not None
    return row.steps


def closed_form(study: Study, root: Path) -> list[str]:
    """What survives nearest rounding on this model's grid by `evaluation.survival`, for updates of several sizes."""
    starts = {
        start for node in study.nodes.values() if node.final and (start := _quantized_start(study, node))
    }
    if not starts:
        return []
    first = min(starts, key=lambda path: len(study.nodes[path].key))
    directory = root / relative_directory(model_key(study.nodes[first]))
    grid = [weight.parts for weight in quantized_weights(directory)]
    shares = (f"{size:g}: {predict_for_grid(grid, size):.3f}" for size in SIZES)
    return [
        f"share that survives on the grid of {study.nodes[first].key}, by update size: {', '.join(shares)}"
    ]


def _quantized_start(study: Study, node: Node) -> tuple[str, ...] | None:
    """Path of the NF4 model whose grid the node's training started from, where the node is a Q after a training."""
    if node.technique != "Q" or len(node.path) < 2:
        return None
    return compared_with(node)[1]


def predict_for_grid(grid: Sequence[nf4.Stored], rms: float) -> float:
    """The surviving share for a whole model on its grid, were the updates of every matrix of one size."""
    sizes = [nf4.shape_of(parts).numel() for parts in grid]
    kept = (
        size * predict_surviving(nf4.block_codes(parts), nf4.block_absmax(parts), rms)
        for size, parts in zip(sizes, grid, strict=True)
    )
    return sum(kept) / sum(sizes)


def kept_apart(study: Study, root: Path, rank: int) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Every training that starts from a dequantized model and is not cut, kept beside that model's codes."""
    data = TokenDataset.load(root / relative_directory(DATASETS["evaluation"]))
    lines = []
    for path in dict.fromkeys(
        node.path[:-1] for node in study.nodes.values() if _quantized_start(study, node) == node.path[:-3]
    ):
        quantized, trained = (
            root / relative_directory(model_key(study.nodes[one])) for one in (path[:-2], path)
        )
        if (trained / "config.json").is_file():
            found = apart(quantized, trained, data, study.evaluation.perplexity.batch_size, rank)
            lines.append(
                (study.nodes[path].key, rank, found.perplexity, found.surviving, found.bytes / 2**20)
            )
    return ["kept apart", "rank", "perplexity", "surviving", "MiB beside the codes"], lines


def _mean(rows: Sequence[Rounded], name: str) -> float | None:
    values = [value for row in rows if (value := getattr(row, name)) is not None]
    return fmean(values) if values else None


if __name__ == "__main__":
    main()
