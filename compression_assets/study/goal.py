"""What a study is for: which model is the best one, under which limits."""

from collections.abc import Iterable
from typing import Self

from pydantic import model_validator

from compression_assets.evaluation.metrics import METRICS, metric
from compression_assets.strict import Strict, near_match


class Goal(Strict):
    """The model to take: without a limit on size, the best among the smallest that are within the limits.

    best: the metric that decides. max, min: metric -> value that a model must not exceed or fall below; with a
    `max` on size_mib, size is settled and the best of all that are within the limits is taken.
    """

    best: str = "perplexity"
    max: dict[str, float] = {}
    min: dict[str, float] = {}

    @model_validator(mode="after")
    def _best_has_a_direction(self) -> Self:
        if metric(self.best).higher_is_better is None:
            raise ValueError(f"best: {self.best} is neither better high nor low; name another metric")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that it names."""
        return (self.best, *self.max, *self.min)


def unknown_metric(names: Iterable[str], tasks: bool) -> str | None:
    """The first name that no metric has, in a sentence; None where all are known.

    tasks: whether the study runs tasks of the evaluation harness, whose metrics are known once they have run.
    """
    for name in names:
        if name not in METRICS and not tasks:
            return f"there is no metric {name!r}: {near_match(name, METRICS)}"
    return None
