"""Weaker perturbation first? Whether what each step does alone predicts the best order, on a finished study.

    compression run --study benchmarks/hypothesis.yaml
    python -m benchmarks.hypothesis

Any study will do that has, of the same steps, twelve orders (and each step alone, behind what all of them begin with)
with three seeds. The rules, fixed before any figure:
The perturbation of a step is what it does to log-perplexity by itself (table step_diagnostics), in two readings:
signed, so that a distillation that helps is the weakest, and its size. An order's prediction is how many pairs of its
steps have the stronger one first. In a setting and a reading the hypothesis is supported if the 95 % bootstrap
interval of the rank correlation between that and log-perplexity lies above zero, contradicted if it lies below, else
undecided.
"""

import argparse
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

from compression_assets.evaluation.order_hypothesis import Agreement, agreement, inversions
from compression_assets.reporting.database import up_to_date
from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.study.model import Study
from compression_assets.study.orderings import Ordering
from compression_assets.study.places import current_study, study_root
from compression_assets.tables import plain

STUDY = Path(__file__).with_name("hypothesis.yaml")
LEAST_ORDERS = 3
"""Of the same steps, below which there is nothing to rank."""
READINGS: dict[str, Callable[[float], float]] = {"signed": float, "size": abs}


@dataclass(frozen=True)
class Setting:
    """The orders of the same steps. prefix: what all begin with. orders: without it. alone: step -> change of
    log-perplexity by it alone, mean over seeds. loss: order -> log-perplexity at its end, for each seed."""

    prefix: tuple[str, ...]
    orders: tuple[tuple[str, ...], ...]
    alone: Mapping[str, float]
    loss: Mapping[tuple[str, ...], Sequence[float]]

    def predicted(self, reading: str) -> dict[tuple[str, ...], float]:
        strength = {step: READINGS[reading](change) for step, change in self.alone.items()}
        return {order: inversions(order, strength) for order in self.orders}

    def agreement(self, reading: str) -> Agreement:
        return agreement(list(self.predicted(reading).values()), [self.loss[order] for order in self.orders])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default=str(STUDY), help="a preset's name or the path of a study file")
    os.environ["COMPRESSION_STUDY"] = parser.parse_args().study
    study = current_study()
    settings = read(study, study_root(study))
    if not settings:
        raise SystemExit(f"study {study.name} has no {LEAST_ORDERS} orders of the same steps")
    print("\n\n".join(map(shown, settings)))


def read(study: Study, root: Path) -> list[Setting]:
    """Every setting of a finished study. SystemExit where a model of it has not been measured yet."""
    database, _ = up_to_date(study, root)
    _, found = database.query("SELECT model, value FROM all_metrics WHERE metric = 'perplexity'")
    perplexity = dict(found)
    by_steps: dict[tuple[str, ...], dict[tuple[str, ...], list[Ordering]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for ordering in study.parsed_orderings:
        order = tuple(ordering.sequence.split("-"))
        by_steps[tuple(sorted(order))][order].append(ordering)
    settings = []
    for orders in by_steps.values():
        if len(orders) < LEAST_ORDERS:
            continue
        prefix = tuple(
            steps[0] for steps in takewhile(lambda steps: len(set(steps)) == 1, zip(*orders, strict=True))
        )
        rest = {order[len(prefix) :]: made for order, made in orders.items()}
        settings.append(
            Setting(
                prefix,
                tuple(rest),
                {step: _alone(study, database, prefix, step) for step in sorted(next(iter(rest)))},
                {order: [_logged(perplexity, one) for one in made] for order, made in rest.items()},
            )
        )
    return settings


def _alone(study: Study, database: MetricsDatabase, prefix: tuple[str, ...], step: str) -> float:
    """Change of log-perplexity by a step alone, mean over seeds."""
    sequence = "-".join((*prefix, step))
    keys = [ordering.key for ordering in study.parsed_orderings if ordering.sequence == sequence]
    if not keys:
        raise SystemExit(
            f"study {study.name} has no ordering {sequence}, which says what {step} does alone: add it"
        )
    _, rows = database.query("SELECT DISTINCT model, log_change FROM step_diagnostics")
    changes = [change for model, change in rows if model in keys and change is not None]
    if len(changes) < len(keys):
        raise SystemExit(
            f"what {step} does alone is not measured yet: run study {study.name}, with evaluation.diagnostics"
        )
    return fmean(changes)


def _logged(perplexity: Mapping[str, float | None], ordering: Ordering) -> float:
    value = perplexity.get(ordering.key)
    if value is None:
        raise SystemExit(f"{ordering.text} is not measured yet: run the study to its end")
    return math.log(value)


def shown(setting: Setting) -> str:
    """One setting as a table and its verdicts."""
    signed, size = (setting.predicted(reading) for reading in READINGS)
    rows: list[tuple[Any, ...]] = [
        ("-".join(order), signed[order], size[order], f"{math.exp(fmean(setting.loss[order])):.2f}")
        for order in sorted(setting.orders, key=lambda one: fmean(setting.loss[one]))
    ]
    alone = ", ".join(
        f"{step} {change:+.3f}" for step, change in sorted(setting.alone.items(), key=lambda one: one[1])
    )
    behind = f" behind {'-'.join(setting.prefix)}" if setting.prefix else ""
    lines = [f"log-perplexity by each step alone{behind}: {alone}", ""]
    lines += [plain(["order", "inversions, signed", "inversions, size", "perplexity"], rows), ""]
    for reading in READINGS:
        found = setting.agreement(reading)
        interval = "no interval" if found.lo is None else f"95 % interval {found.lo:+.2f} to {found.hi:+.2f}"
        rho = "none" if found.rho is None else f"{found.rho:+.2f}"
        lines.append(
            f"{reading}: rank correlation {rho} ({interval}, {found.orders} orders, {found.seeds} seeds, "
            f"{found.undefined} draws without one): {found.verdict()}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
