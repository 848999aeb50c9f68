"""Which of the measured models to take under stated limits. Pure: rows of the leaderboard in, a choice out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compression_assets.errors import StudyError, next_command
from compression_assets.strict import near_match

SIZE, QUALITY = "size_mib", "perplexity"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """At most `most[metric]`, at least `least[metric]`. A model without a value for one of them is not admitted."""

    most: Mapping[str, float] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)

    def misses(self, row: Row) -> list[str]:
        """What speaks against a model, one clause a limit."""
        found = []
        for metric, limit in {**self.most, **self.least}.items():
            value = row[metric]
            if value is None:
                found.append(f"its {metric} is not measured")
            elif metric in self.most and value > self.most[metric]:
                found.append(f"its {metric} is {value:.4g}, above {self.most[metric]:g}")
            elif metric in self.least and value < self.least[metric]:
                found.append(f"its {metric} is {value:.4g}, below {limit:g}")
        return found

    def distance(self, row: Row) -> float:
        """How far a model is from what is asked, relative to each limit; a metric that is not measured counts as 1."""
        total = 0.0
        for limits, sign in ((self.most, 1), (self.least, -1)):
            for metric, limit in limits.items():
                value = row[metric]
                total += 1.0 if value is None else max(0.0, sign * (value - limit) / (abs(limit) or 1.0))
        return total


@dataclass(frozen=True)
class Choice:
    """model: key of the model to take, None when the limits admit none. front: keys, from small to large."""

    model: str | None
    why: str
    front: tuple[str, ...]


def recommend(rows: Sequence[Row], limits: Limits) -> Choice:
    """Choose among the rows of the leaderboard.

    Under a limit on size the best perplexity is taken, otherwise the smallest model that the limits admit; without any
    limit, the front's model with the least perplexity times size, that is what a per cent of either is worth equally.
    Raises StudyError when nothing is measured or a limit names no metric.
    """
    known = [row for row in rows if row.get(SIZE) is not None and row.get(QUALITY) is not None]
    if not known:
        raise StudyError(
            f"nothing has been measured yet that could be recommended; run: {next_command('run')}"
        )
    for metric in (*limits.most, *limits.least):
        if metric not in known[0]:
            raise StudyError(
                f"there is no metric {metric!r} in the leaderboard: {near_match(metric, known[0])}"
            )
    front = tuple(row["model"] for row in pareto_front(known))
    admitted = [row for row in known if not limits.misses(row)]
    if not admitted:
        nearest = min(known, key=limits.distance)
        why = f"no model is within these limits; nearest is {nearest['model']}: {'; '.join(limits.misses(nearest))}"
        return Choice(None, why, front)
    if SIZE in limits.most:
        best = min(admitted, key=lambda row: (row[QUALITY], row[SIZE]))
        return Choice(best["model"], _why(best, "the best perplexity", admitted), front)
    if limits.most or limits.least:
        best = min(admitted, key=lambda row: (row[SIZE], row[QUALITY]))
        return Choice(best["model"], _why(best, "the smallest model", admitted), front)
    best = min(pareto_front(admitted), key=lambda row: row[SIZE] * row[QUALITY])
    return Choice(best["model"], _why(best, "the least size times perplexity", admitted), front)


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Models that no other is both as small as and as good as, from small to large; of equal ones the first.

    Sizes that agree in three digits count as equal: two NF4 files of the same shapes differ by some printed digits.
    """
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (float(f"{row[SIZE]:.3g}"), row[QUALITY])):
        if not front or row[QUALITY] < front[-1][QUALITY]:
            front.append(row)
    return front


def _why(row: Row, what: str, admitted: Sequence[Row]) -> str:
    return (
        f"{row['model']} ({row['ordering']}) has {what} of the {len(admitted)} models within the limits: "
        f"{row[SIZE]:,.1f} MiB, perplexity {row[QUALITY]:.2f}"
    )


def parse_limits(
    max_size: float | None, max_perplexity: float | None, most: Sequence[str], least: Sequence[str]
) -> Limits:
    """Limits from a command line; most and least: "metric=value". StudyError for one that is not of that form."""
    upper = {
        name: value for name, value in ((SIZE, max_size), (QUALITY, max_perplexity)) if value is not None
    }
    return Limits({**upper, **dict(map(_limit, most))}, dict(map(_limit, least)))


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise StudyError(f"the limit {text!r} cannot be read: write metric=number, as in f1=0.2") from None
