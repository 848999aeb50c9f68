"""Figures of models that are on disk, by the names that the leaderboard has for them."""

from dataclasses import dataclass
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.evaluation.comparisons import Measured
from compression_assets.evaluation.measured import read_measured
from compression_assets.reporting.current import outdated
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.study.model import Study
from compression_assets.study.names import relative_directory
from compression_assets.study.orderings import Ordering

SIZE = "size_mib"


@dataclass(frozen=True)
class Target:
    """What a search is after. metric: by its name in the leaderboard. part: the measurement that it is in."""

    metric: str
    part: str

    @property
    def parts(self) -> tuple[str, ...]:
        """What has to be measured of every trial: its size is in `metrics`."""
        return tuple(dict.fromkeys(("metrics", self.part)))


GOALS = {
    "perplexity": Target("perplexity", "metrics"),
    "kl": Target("kl_to_base", "metrics"),
    "g_eval": Target("g_eval", "judged"),
}


class Figures:
    """What is measured of a study by now; what belongs to an earlier state of it is not."""

    def __init__(self, study: Study, root: Path) -> None:
        self._store = artifacts_of(root)
        self._manifests, _ = self._store.manifests()
        self._outdated = outdated(study, self._manifests)

    def has(self, ordering: Ordering, part: str) -> bool:
        """Whether a part of an ordering's measurement is there, made as the study now says."""
        there = str(relative_directory(f"{part}_{ordering.key}")) in self._manifests
        return there and (ordering.key, part) not in self._outdated

    def measured(self, ordering: Ordering, part: str, metric: str) -> Measured | None:
        """A metric of an ordering with its items; None where it is not measured, or could not be."""
        asset = f"{part}_{ordering.key}"
        if not self.has(ordering, part):
            return None
        rows, samples = read_measured(
            self._store.needed(self._store.root / relative_directory(asset), asset, "search")
        )
        row = next((row for row in rows if row.metric == metric), None)
        if row is None or row.value is None:
            return None
        return Measured(row, [sample for sample in samples if sample.metric == metric])

    def value(self, ordering: Ordering, target: Target) -> float | None:
        found = self.measured(ordering, target.part, target.metric)
        return None if found is None else found.row.value

    def size(self, ordering: Ordering) -> float | None:
        found = self.measured(ordering, "metrics", SIZE)
        return None if found is None else found.row.value


def goal(name: str, study: Study) -> Target:
    """Raises StudyError for a goal that the study does not measure."""
    from compression_assets.study.leaderboard_models import parts

    target = GOALS[name]
    if target.part not in parts(study):
        raise StudyError(
            f"the goal {name} needs a judge, and study {study.name} has none: write evaluation.judge, or search for "
            "perplexity or kl"
        )
    return target
