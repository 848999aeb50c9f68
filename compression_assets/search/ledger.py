"""What a search has tried and measured: trials in a journal of Optuna's, which also chooses what to try next.

Every decision is written before it is acted on, and made from what is written alone, so that a search that was killed
comes to the same trials as one that was not.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.search.space import ORDER, Candidate, Trains, draw
from compression_assets.study.search import Search

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Trial:
    """A candidate by its number.

    bracket, slot: its place. ordering: with the full budget. predicted_mib: of its weights file, None where there is
    no such model. why: what it was left out for, "" for one that is tried. values: rung -> the goal's metric. failed:
    rung -> why there is no value.
    """

    number: int
    candidate: Candidate
    bracket: int
    slot: int
    ordering: str
    predicted_mib: float | None
    why: str
    values: dict[int, float]
    failed: dict[int, str]


class Ledger:
    """The trials of one search."""

    def __init__(self, file: Path, name: str, space: Search, orders: list[str], trains: Trains, *, seed: int,
                 higher_is_better: bool) -> None:  # fmt: skip
        """file: made where it is missing. name: of what the search is about; trials of another name are not seen."""
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(logging.WARNING)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._space, self._orders, self._trains, self._seed = space, orders, trains, seed
        self._study: optuna.Study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(file))),
            study_name=name,
            direction="maximize" if higher_is_better else "minimize",
            load_if_exists=True,
        )
        for frozen in self._study.get_trials(deepcopy=False):
            if "slot" not in frozen.user_attrs:  # its process was killed
                self._fail(frozen.number)

    @property
    def seconds(self) -> float:
        """Spent on runs so far, by every process that has searched."""
        return float(self._study.user_attrs.get("seconds", 0.0))

    @property
    def tokens(self) -> int | None:
        """Tokens that the distillation set trains on, once the data have been made."""
        found: int | None = self._study.user_attrs.get("tokens")
        return found

    def set_tokens(self, tokens: int) -> None:
        self._study.set_user_attr("tokens", tokens)

    @contextmanager
    def timed(self, seconds: Any) -> Iterator[None]:
        """Count the time of a context, however it ends. seconds: a clock."""
        started = seconds()
        try:
            yield
        finally:
            self._study.set_user_attr("seconds", self.seconds + seconds() - started)

    def trials(self, bracket: int | None = None) -> list[Trial]:
        """All trials, or those of a bracket that are tried, by number."""
        found = [
            self._trial(frozen)
            for frozen in self._study.get_trials(deepcopy=False)
            if "slot" in frozen.user_attrs
        ]
        return [trial for trial in found if bracket is None or (trial.bracket == bracket and not trial.why)]

    def draw(
        self, bracket: int, slot: int, attempt: int, order: str | None = None, *, learned: bool = True
    ) -> tuple[int, Candidate]:
        """A new trial's number and candidate.

        order: the one that it must have. learned: in favour of what has done well so far; else all alike.
        """
        import optuna

        chance = (self._seed * 1_000_003 + bracket * 10_007 + slot * 101 + attempt) % 2**32
        kind = optuna.samplers.TPESampler if learned else optuna.samplers.RandomSampler
        sampler: optuna.samplers.BaseSampler = kind(seed=chance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if order is not None:
                sampler = optuna.samplers.PartialFixedSampler({ORDER: order}, sampler)
            self._study.sampler = sampler
            trial = self._study.ask()
            return trial.number, draw(self._space, self._orders, self._trains, trial.suggest_categorical)

    def place(
        self,
        number: int,
        bracket: int,
        slot: int,
        ordering: str,
        mib: float | None,
        why: str = "",
        excess: float = 0.0,
    ) -> None:
        """Write down where a candidate belongs, or why it is left out.

        excess: how far it is beyond what is asked for, from which the sampler learns; 0 for what is left out otherwise.
        """
        trial = self._open(number)
        trial.set_user_attr("bracket", bracket)
        trial.set_user_attr("ordering", ordering)
        trial.set_user_attr("predicted_mib", mib)
        trial.set_user_attr("why", why)
        trial.set_user_attr("slot", slot)  # the last: a trial without it was never placed
        if excess > 0:
            trial.set_constraint("excess", excess)
            self.end(number)
        elif why:
            self._fail(number)

    def leave_out(self, number: int, why: str) -> None:
        """Take a trial out of its bracket."""
        self._open(number).set_user_attr("why", why)
        self._fail(number)

    def record(self, number: int, rung: int, value: float | None, why: str = "") -> None:
        """Write down what was measured at a rung, or why nothing was."""
        trial = self._open(number)
        if value is None:
            trial.set_user_attr(f"failed_{rung}", why)
        else:
            trial.report(value, step=rung)

    def end(self, number: int, value: float | None = None) -> None:
        """Close a trial: with its value at the full budget, or without one. One that is closed stays as it is."""
        import optuna

        state = optuna.trial.TrialState.PRUNED if value is None else None
        self._study.tell(number, value, state=state, skip_if_finished=True)

    def _fail(self, number: int) -> None:
        """Close a trial of which the sampler shall not know."""
        import optuna

        self._study.tell(number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _open(self, number: int) -> "optuna.Trial":
        import optuna

        return optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)

    def _trial(self, frozen: "optuna.trial.FrozenTrial") -> Trial:
        said = frozen.user_attrs
        failed = {
            int(key.removeprefix("failed_")): why for key, why in said.items() if key.startswith("failed_")
        }
        return Trial(
            frozen.number,
            draw(self._space, self._orders, self._trains, lambda name, _: frozen.params[name]),
            said["bracket"],
            said["slot"],
            said["ordering"],
            said["predicted_mib"],
            said["why"],
            dict(frozen.intermediate_values),
            failed,
        )
