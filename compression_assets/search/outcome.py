"""The end of a search: its winner beside the best order of the study within the same size, over the same seeds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from compression_assets.evaluation.comparisons import compare, holm
from compression_assets.evaluation.metrics import metric
from compression_assets.search.found import Figures, Target
from compression_assets.study.model import Study
from compression_assets.study.orderings import Ordering
from compression_assets.tables import significant

WON, LOST, OPEN = 1, -1, 0


@dataclass(frozen=True)
class Repeat:
    """Both models made with one seed. difference: found less written, over the items that both have, with its interval.

    p_holm: of the paired randomisation test, corrected for the number of seeds. None: not measured.
    """

    seed: int
    found: str
    found_ordering: str
    found_value: float | None
    found_mib: float | None
    written: str | None = None
    written_ordering: str | None = None
    written_value: float | None = None
    written_mib: float | None = None
    difference: float | None = None
    lo: float | None = None
    hi: float | None = None
    p_holm: float | None = None

    def row(self) -> dict[str, object]:
        return asdict(self)


def repeated(
    study: Study, figures: Figures, target: Target, pairs: Sequence[tuple[Ordering, Ordering | None]]
) -> list[Repeat]:
    """A row for each pair (found, written) of orderings that differ in their seed alone."""
    rows: list[Repeat] = []
    p_values: list[tuple[int, float]] = []
    for found, written in pairs:
        row = Repeat(
            seed=study.seed if found.seed is None else found.seed,
            found=found.key,
            found_ordering=found.text,
            found_value=figures.value(found, target),
            found_mib=figures.size(found),
        )
        if written is not None:
            row = replace(
                row,
                written=written.key,
                written_ordering=written.text,
                written_value=figures.value(written, target),
                written_mib=figures.size(written),
            )
            a, b = (figures.measured(one, target.part, target.metric) for one in (found, written))
            if a is not None and b is not None and found != written:
                models = {found.key: a, written.key: b}
                (pair,) = compare(target.metric, models, study.evaluation.statistics, study.seed)
                row = replace(row, difference=pair.difference, lo=pair.lo, hi=pair.hi)
                if pair.p_value is not None:
                    p_values.append((len(rows), pair.p_value))
        rows.append(row)
    for (index, _), adjusted in zip(p_values, holm([value for _, value in p_values]), strict=True):
        rows[index] = replace(rows[index], p_holm=adjusted)
    return rows


def judged(rows: Sequence[Repeat], target: Target, significance: float) -> int:
    """WON or LOST where every seed says so over the same items, after Holm's correction; else OPEN."""
    if not rows or any(
        row.difference is None or row.p_holm is None or row.p_holm >= significance for row in rows
    ):
        return OPEN
    higher = bool(metric(target.metric).higher_is_better)
    better = {(row.difference or 0.0) > 0 if higher else (row.difference or 0.0) < 0 for row in rows}
    return OPEN if len(better) > 1 else WON if better == {True} else LOST


def verdict(rows: Sequence[Repeat], target: Target, max_mib: float, significance: float) -> str:
    """What came of the search, in a few sentences."""
    first, title = rows[0], metric(target.metric).title
    found = f"{first.found_ordering}: {title} {_over_seeds([row.found_value for row in rows])}"
    begin = f"Within {max_mib:g} MiB the search found {found} at {_number(first.found_mib)} MiB."
    if first.written_ordering is None:
        return f"{begin} No order that the study lists is within this size, so there is nothing to hold it against."
    written = (
        f"{first.written_ordering} ({title} {_over_seeds([row.written_value for row in rows])} at "
        f"{_number(first.written_mib)} MiB)"
    )
    if first.written_ordering == first.found_ordering:
        return f"{begin} That is the study's own best order: the search found nothing better."
    worst = max((row.p_holm for row in rows if row.p_holm is not None), default=None)
    p_value = f"largest p = {significant(worst, 2)}" if worst is not None else "no p-value"
    end = {
        WON: f"It beats the study's best order, {written}, over the same items with every seed ({p_value}).",
        LOST: f"It did NOT win: the study's best order, {written}, is better over the same items with every seed "
        f"({p_value}).",
        OPEN: f"It is NOT shown to be better than the study's best order, {written}: not every seed says the same "
        f"after Holm's correction ({p_value}).",
    }
    return f"{begin} {end[judged(rows, target, significance)]}"


def _over_seeds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not measured"
    mean = significant(sum(known) / len(known), 4)
    if len(known) == 1:
        return f"{mean} (one seed)"
    return f"{mean} on average over {len(known)} seeds ({significant(min(known), 4)} to {significant(max(known), 4)})"


def _number(value: float | None) -> str:
    return "–" if value is None else significant(value, 4)
