"""What a candidate is, and how one is drawn from the space of a study. No study is touched here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compression_assets.study.search import Search

Choose = Callable[[str, Sequence[Any]], Any]
"""Called with the name of a choice and its values; returns one of them."""

Trains = Callable[[str], bool]
"""Whether a technique trains on the distillation set, by its name."""

ORDER, SHARE = "order", "share"


@dataclass(frozen=True)
class Candidate:
    """An order of techniques with what differs from their plain recipes.

    settings: technique -> setting, with dots -> value. share: of the distillation tokens, for the first of several
    steps that train on them.
    """

    order: str
    settings: Mapping[str, Mapping[str, Any]]
    share: float = 1.0

    @property
    def steps(self) -> list[str]:
        return self.order.split("-")


def draw(space: Search, orders: Sequence[str], trains: Trains, choose: Choose) -> Candidate:
    """A candidate: its order first, then only what that order leaves to be chosen."""
    order = str(choose(ORDER, orders))
    steps = order.split("-")
    settings = {
        name: {key: choose(f"{name}.{key}", values) for key, values in space.settings.get(name, {}).items()}
        for name in dict.fromkeys(steps)
    }
    several = sum(trains(step) for step in steps) > 1
    return Candidate(order, settings, choose(SHARE, space.shares) if several else 1.0)


def token_shares(candidate: Candidate, trains: Trains) -> list[float]:
    """For each step its share of the distillation tokens; 0 for one that does not train on them. The sum is 1 or 0."""
    training = [index for index, step in enumerate(candidate.steps) if trains(step)]
    shares = [0.0] * len(candidate.steps)
    for place, index in enumerate(training):
        others = len(training) - 1
        shares[index] = candidate.share if place == 0 else (1 - candidate.share) / others
    return shares
