"""Which of the measured models to take under stated limits. Pure: rows in, a choice out.

One Pareto front and one meaning of "as large" for the report, the recommendation and the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compression_assets.errors import StudyError, next_command
from compression_assets.evaluation.metrics import metric as metric_of
from compression_assets.strict import near_match
from compression_assets.study.goal import Goal

SIZE, TENSORS, PERPLEXITY = "size_mib", "tensor_mib", "perplexity"
NAMES = ("model", "ordering")
"""Keys of a row that are no metric."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """At most `most[metric]`, at least `least[metric]`. A model without a value for one of them is not admitted."""

    most: Mapping[str, float] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, goal: Goal) -> "Limits":
        """Those of a study's goal."""
        return cls(goal.max, goal.min)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*self.most, *self.least)

    def misses(self, row: Row) -> list[str]:
        """What speaks against a model, one clause a limit."""
        clauses = []
        for limits, side, sign in ((self.most, "above", 1), (self.least, "below", -1)):
            for name, limit in limits.items():
                value = row.get(name)
                if value is None:
                    clauses.append(f"its {name} is not measured")
                elif sign * (value - limit) > 0:
                    digits = next(n for n in range(4, 18) if f"{value:.{n}g}" != f"{limit:.{n}g}")
                    clauses.append(f"its {name} is {value:.{digits}g}, {side} {limit:.{digits}g}")
        return clauses

    def distance(self, row: Row) -> float:
        """How far a model is from what is asked, relative to each limit; a metric that is not measured counts as 1."""
        total = 0.0
        for limits, sign in ((self.most, 1), (self.least, -1)):
            for name, limit in limits.items():
                value = row.get(name)
                total += 1.0 if value is None else max(0.0, sign * (value - limit) / (abs(limit) or 1.0))
        return total


@dataclass(frozen=True)
class Choice:
    """model: key of the model to take, None when the limits admit none. front: keys, from small to large.

    rivals: keys of the models that competed in the end, those of the same size unless size is limited; the best first.
    """

    model: str | None
    why: str
    front: tuple[str, ...]
    rivals: tuple[str, ...] = ()


def size_of(row: Row) -> float:
    """MiB that follow from shapes and format: those of the tensors, without what a file's header and digits add."""
    tensors = row.get(TENSORS)
    return float(row[SIZE] if tensors is None else tensors)


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[bool]:
    """Which (size, quality) points no other point beats: as small, as good, and better in one of both."""

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        as_good = one[1] >= other[1] if higher_is_better else one[1] <= other[1]
        return one[0] <= other[0] and as_good and one != other

    return [not any(beats(other, point) for other in points) for point in points]


def front_of(rows: Sequence[Row], best: str = PERPLEXITY) -> list[Row]:
    """The rows on the front of size and `best`, from small to large. All of them have both."""
    higher = bool(metric_of(best).higher_is_better)
    on = pareto_front([(size_of(row), row[best]) for row in rows], higher_is_better=higher)
    return sorted((row for row, kept in zip(rows, on, strict=True) if kept), key=size_of)


def choose(rows: Sequence[Row], limits: Limits, best: str = PERPLEXITY) -> Choice:
    """Choose among models (rows of metric -> value, with `model` and `ordering`).

    Under a limit on size the model that is best in the metric `best` is taken, otherwise the smallest that the limits
    admit; of models of the same size always the best. Raises StudyError when nothing is measured or a limit names no
    metric.
    """
    known = [row for row in rows if row.get(SIZE) is not None and row.get(best) is not None]
    if not known:
        raise StudyError(
            f"nothing has been measured yet that could be recommended; run: {next_command('run')}"
        )
    measured = {name for row in rows for name in row if name not in NAMES}
    for name in limits.metrics:
        if name not in measured:
            raise StudyError(f"no model has a metric {name!r}: {near_match(name, sorted(measured))}")
    front = tuple(row["model"] for row in front_of(known, best))
    admitted = [row for row in known if not limits.misses(row)]
    sign = -1 if metric_of(best).higher_is_better else 1
    if not admitted:
        # Files of as many weights differ by printed digits: of those equally far the best one is named.
        nearest = min(known, key=lambda row: (round(limits.distance(row), 4), sign * row[best]))
        why = f"no model is within these limits; nearest is {nearest['model']}: {'; '.join(limits.misses(nearest))}"
        return Choice(None, why, front)
    least = min(map(size_of, admitted))
    rivals = admitted if SIZE in limits.most else [row for row in admitted if size_of(row) == least]
    ranked = sorted(rivals, key=lambda row: (sign * row[best], size_of(row)))
    among = "within the limits" if limits.metrics else "measured"
    size = "" if SIZE in limits.most else ("equally small " if len(rivals) > 1 else "smallest ")
    taken = ranked[0]
    why = (
        f"{taken['model']} ({taken['ordering']}) has the best {best} of the {len(rivals)} {size}models, "
        f"{len(admitted)} being {among}: {taken[SIZE]:,.4g} MiB, {best} {taken[best]:.4g}"
    )
    return Choice(taken["model"], why, front, tuple(row["model"] for row in ranked))
