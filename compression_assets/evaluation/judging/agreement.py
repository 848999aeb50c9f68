"""Do two judges, or a judge and people, agree? Rank correlation, and pairs of answers put into the same order."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.calibration import CONFIDENCE, RESAMPLES
from compression_assets.evaluation.measured import read_measured

if TYPE_CHECKING:
    import numpy as np

Scores = Mapping[tuple[str, str], float]
"""(model, item) -> score; what either side left out is left out of both."""
COLUMNS = ("item", "model", "score")


@dataclass(frozen=True)
class Agreement:
    """How far two sets of scores of the same answers agree.

    n: answers that both scored. rho: Spearman's rank correlation, None where one side gives every answer the same
    score. lo, hi: its 95 % interval, by a bootstrap over items (the answers to one question share it).
    pairs: pairs of answers to the same item that `other` tells apart; right: those that the judge puts in its order.
    """

    n: int
    rho: float | None
    lo: float | None
    hi: float | None
    pairs: int
    right: int

    @property
    def accuracy(self) -> float | None:
        return self.right / self.pairs if self.pairs else None


OTHERS = "others.parquet"
"""In a judged artifact: judge, metric, item, value of every further judge."""


def write_others(rows: Sequence[Mapping[str, Any]], directory: Path) -> None:
    """Write the scores of further judges; nothing where there are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if rows:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), directory / OTHERS)


def agreements(judged: Mapping[str, Path], seed: int) -> list[dict[str, Any]]:
    """Rows of the table `judge_agreement`: by metric and further judge, over all models' answers.

    judged: model -> its judged artifact.
    """
    scores = _scores(judged)
    first = {metric: found for (metric, judge), found in scores.items() if judge == ""}
    rows = []
    for (metric, judge), found in scores.items():
        if judge:
            rows.append(
                {"metric": metric, "other": judge, **asdict(agreement(first.get(metric, {}), found, seed))}
            )
    return rows


def against_people(judged: Mapping[str, Path], people: Scores, seed: int, first: str) -> list[dict[str, Any]]:
    """A row for each judge and metric that has scored any of the answers that people have. first: name of the first."""
    rows = []
    for (metric, judge), found in _scores(judged).items():
        if not found.keys() & people.keys():
            continue
        agreed = agreement(found, people, seed)
        rows.append(
            {"metric": metric, "judge": judge or first, **asdict(agreed), "accuracy": agreed.accuracy}
        )
    return rows


def _scores(judged: Mapping[str, Path]) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    """(metric, judge) -> scores; the first judge is ""."""
    import pyarrow.parquet as pq

    found: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for model, directory in judged.items():
        for sample in read_measured(directory)[1]:
            if sample.value is not None:
                found.setdefault((sample.metric, ""), {})[model, sample.item] = sample.value
        if (directory / OTHERS).is_file():
            for row in pq.read_table(directory / OTHERS).to_pylist():
                found.setdefault((row["metric"], row["judge"]), {})[model, row["item"]] = row["value"]
    return found


def agreement(judge: Scores, other: Scores, seed: int) -> Agreement:
    """`judge` against `other`, over the answers that both have scored."""
    import numpy as np

    both = sorted(judge.keys() & other.keys(), key=lambda key: (key[1], key[0]))
    ours, theirs = np.array([judge[key] for key in both]), np.array([other[key] for key in both])
    items = np.array([key[1] for key in both])
    pairs, right = _pairs(ours, theirs, items)
    rho = _spearman(ours, theirs)
    lo = hi = None
    groups = [np.flatnonzero(items == item) for item in dict.fromkeys(items)]
    if rho is not None and len(groups) > 1:
        draws = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
        resampled = []
        for draw in draws:
            rows = np.concatenate([groups[place] for place in draw])
            found = _spearman(ours[rows], theirs[rows])
            if found is not None:
                resampled.append(found)
        tail = (1 - CONFIDENCE) / 2
        lo, hi = (float(end) for end in np.quantile(resampled, [tail, 1 - tail]))
    return Agreement(len(both), rho, lo, hi, pairs, right)


def read_people(file: Path) -> dict[tuple[str, str], float]:
    """Scores of people from a CSV with the columns item, model, score; several of one answer are averaged.

    Raises StudyError when the file is not there, a column is missing, or a score is no number.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:  # spreadsheets mark their UTF-8
            reader = csv.DictReader(handle)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise StudyError(
                    f"{file} has no column {missing[0]!r}; it needs {', '.join(COLUMNS)} in its first line"
                )
            found: dict[tuple[str, str], list[float]] = {}
            for line, row in enumerate(reader, start=2):
                found.setdefault((row["model"], row["item"]), []).append(_number(row["score"], file, line))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{file} cannot be read ({error}); give a CSV with {', '.join(COLUMNS)}") from None
    return {key: sum(scores) / len(scores) for key, scores in found.items()}


def _number(text: str | None, file: Path, line: int) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = float("nan")
    if number != number or number in (float("inf"), float("-inf")):
        raise StudyError(
            f"{file}, line {line}: the score {str(text)[:40]!r} is no number; write one such as 0.5"
        )
    return number


def _spearman(ours: "np.ndarray", theirs: "np.ndarray") -> float | None:
    """Pearson's correlation of the ranks, ties sharing theirs; None where one side is constant."""
    import numpy as np
    from scipy.stats import rankdata

    one, other = rankdata(ours), rankdata(theirs)
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _pairs(ours: "np.ndarray", theirs: "np.ndarray", items: "np.ndarray") -> tuple[int, int]:
    pairs = right = 0
    for first in range(len(items)):
        for second in range(first + 1, len(items)):
            if items[first] != items[second] or theirs[first] == theirs[second]:
                continue
            pairs += 1
            right += (ours[first] - ours[second]) * (theirs[first] - theirs[second]) > 0
    return pairs, int(right)
