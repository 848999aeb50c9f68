"""The search itself: brackets of candidates, each halved rung by rung, until the hours are spent."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.search.foreseen import predicted_mib, predicted_seconds
from compression_assets.search.found import SIZE, Figures, Target
from compression_assets.search.halving import budgets, promoted
from compression_assets.search.ledger import Ledger, Trial
from compression_assets.search.run import run_orderings
from compression_assets.search.space import Candidate
from compression_assets.search.widened import WidenedStudy
from compression_assets.study.orderings import Ordering, parse_ordering
from compression_assets.study.search import Search
from compression_assets.training.work import Volume
from compression_assets.weights.architectures import Config

ATTEMPTS = 100
"""Draws for one place of a bracket: where none of them is new and small enough, the space has nothing more to give."""
FORCED = 5
"""Of them those that must have a given order."""
TOO_LARGE = "too large"
NO_TIME = "no time is left for it"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What a search works with. max_mib: of a weights file. seconds: for everything but the study's own orders."""

    widened: WidenedStudy
    root: Path
    base: Config
    volume: Volume
    space: Search
    orders: list[str]
    target: Target
    higher_is_better: bool
    max_mib: float
    seconds: float
    say: Say


def run_brackets(setting: Setting, ledger: Ledger) -> None:
    """Fill and halve brackets, from where an earlier process stopped.

    Raises StudyError when nothing can be tried, KeyboardInterrupt when interrupted.
    """
    _remember(setting, ledger)
    most = setting.space.brackets
    bracket = 0
    while most is None or bracket < most:
        trials = filled(setting, ledger, bracket)
        if not trials:
            break
        _halved(setting, ledger, bracket, trials)
        bracket += 1
    if not ledger.trials(bracket=0):
        raise StudyError(_why_nothing(setting, ledger.trials()))


def _why_nothing(setting: Setting, trials: list[Trial]) -> str:
    sizes = [trial.predicted_mib for trial in trials if trial.predicted_mib is not None]
    reason = f"the smallest of {len(sizes)} candidates has {min(sizes):,.1f} MiB" if sizes else trials[0].why
    return (
        f"nothing can be tried within {setting.max_mib:g} MiB ({reason}): raise --max-size, or let the section search "
        "of the study file try smaller models"
    )


def _remember(setting: Setting, ledger: Ledger) -> None:
    """Put everything that has been built into the widened study."""
    shares = budgets(setting.space.rungs, setting.space.keep)
    for trial in ledger.trials():
        for rung in (*trial.values, *trial.failed):
            setting.widened.add(trial.candidate, setting.volume, shares[rung])


def filled(setting: Setting, ledger: Ledger, bracket: int) -> list[Trial]:
    """The trials of a bracket, as many as are wanted and in time; none where neither time nor anything new is left."""
    trials = ledger.trials(bracket)
    if any(trial.values or trial.failed for trial in trials):
        return trials
    for slot in range(_affordable(setting, ledger) if bracket else setting.space.candidates):
        if not _fill(setting, ledger, bracket, slot):
            break
    trials = ledger.trials(bracket)
    while bracket == 0 and len(trials) > 1 and not _in_time(setting, trials):
        ledger.leave_out(trials.pop().number, NO_TIME)
    return trials


def _affordable(setting: Setting, ledger: Ledger) -> int:
    """Candidates of a further bracket for which there is time, as the brackets before it went; 0 for fewer than two."""
    space = setting.space
    tried = sum(bool(trial.values or trial.failed) for trial in ledger.trials())
    each = ledger.seconds / tried
    # A bracket of n trains n times rungs / keep^(rungs - 1) full budgets.
    whole = each * space.keep ** (space.rungs - 1) / space.rungs
    left = setting.seconds - ledger.seconds - 2 * (space.repeats - 1) * whole
    count = space.candidates if each == 0 else min(space.candidates, int(left / each))
    return count if count > 1 else 0


def _fill(setting: Setting, ledger: Ledger, bracket: int, slot: int) -> bool:
    """Draw until one candidate for a place can be tried; whether there was one."""
    placed = [trial for trial in ledger.trials() if (trial.bracket, trial.slot) == (bracket, slot)]
    if any(not trial.why for trial in placed):
        return True
    # Each order has its turn before the sampler chooses among them.
    order = setting.orders[slot] if bracket == 0 and slot < len(setting.orders) else None
    for attempt in range(len(placed), ATTEMPTS):
        # What does well is drawn again and again, until nothing of it is new.
        learned = attempt < ATTEMPTS // 2
        wanted = order if attempt < FORCED else None
        number, candidate = ledger.draw(bracket, slot, attempt, wanted, learned=learned)
        judged = _judged(setting, ledger, candidate)
        ledger.place(number, bracket, slot, judged.ordering, judged.mib, judged.why, judged.excess)
        if not judged.why:
            return True
    return False


@dataclass(frozen=True)
class _Judged:
    """A candidate before any work: its ordering at the full budget, the MiB that it will have, why it is not built."""

    ordering: str
    mib: float | None = None
    why: str = ""
    excess: float = 0.0


def _judged(setting: Setting, ledger: Ledger, candidate: Candidate) -> _Judged:
    limit = setting.max_mib
    try:
        text = setting.widened.spelled(candidate, setting.volume)
        mib = next((trial.predicted_mib for trial in ledger.trials() if trial.ordering == text), None)
        if mib is None:
            study = setting.widened.study(text)
            mib = predicted_mib(study, study.parsed_orderings[-1], setting.base)
    except StudyError as error:
        return _Judged(candidate.order, why=f"impossible: {error}", excess=limit)
    if mib > limit:
        return _Judged(text, mib, f"{TOO_LARGE}: {mib:,.1f} MiB", mib - limit)
    if same := next((trial for trial in ledger.trials() if trial.ordering == text and not trial.why), None):
        return _Judged(text, mib, f"the same as trial {same.number}")
    return _Judged(text, mib)


def _halved(setting: Setting, ledger: Ledger, bracket: int, trials: list[Trial]) -> None:
    """Build and measure the trials of a bracket at each rung; those that are not promoted end there."""
    space = setting.space
    goes_on = [trial.number for trial in trials]
    for rung, budget in enumerate(budgets(space.rungs, space.keep)):
        now = [trial for trial in ledger.trials(bracket) if trial.number in goes_on]
        values = _measured(setting, ledger, now, rung, budget)
        if rung == space.rungs - 1:
            for number, value in values.items():
                ledger.end(number, value)
            return
        goes_on = promoted(values, space.keep, higher_is_better=setting.higher_is_better)
        for number in values.keys() - set(goes_on):
            ledger.end(number)


def _measured(
    setting: Setting, ledger: Ledger, trials: list[Trial], rung: int, budget: float
) -> dict[int, float | None]:
    """Trial -> its value at a rung, built now unless that is written down already."""
    missing = [trial for trial in trials if rung not in trial.values and rung not in trial.failed]
    if missing:
        texts = {t.number: setting.widened.add(t.candidate, setting.volume, budget) for t in missing}
        setting.say(
            f"rung {rung + 1} of {setting.space.rungs}: {len(missing)} trials with {budget:.0%} of the tokens"
        )
        figures, orderings = built(setting, ledger, list(texts.values()), setting.target.parts)
        found = {t.number: figures.value(orderings[texts[t.number]], setting.target) for t in missing}
        sizes = {t.number: figures.size(orderings[texts[t.number]]) for t in missing}
        # One that got further can fail by itself, by diverging; where nothing works, something else is wrong.
        if rung == 0 and all(value is None for value in found.values()):
            raise StudyError(
                "none of these trials could be made and measured: mend what the run says, and search again"
            )
        for number, value in found.items():
            size = sizes[number]
            if value is None:
                ledger.record(number, rung, None, "could not be made or measured")
            elif size is not None and size > setting.max_mib:
                ledger.record(number, rung, None, f"{SIZE} is {size:,.2f}, above {setting.max_mib:g}")
            else:
                ledger.record(number, rung, value)
    numbers = {trial.number for trial in trials}
    return {trial.number: trial.values.get(rung) for trial in ledger.trials() if trial.number in numbers}


def built(
    setting: Setting, ledger: Ledger, texts: list[str], parts: tuple[str, ...]
) -> tuple[Figures, dict[str, Ordering]]:
    """What there is of orderings of the widened study after a run of it, and the orderings by their text."""
    setting.widened.write()
    study = setting.widened.study()
    orderings = {text: parse_ordering(text, variants=study.recipes) for text in texts}
    with ledger.timed(time.monotonic):
        run_orderings(setting.widened.file, orderings.values(), parts)
    return Figures(study, setting.root), orderings


def _in_time(setting: Setting, trials: list[Trial]) -> bool:
    """Whether a first bracket of these trials, and the repeats of a winner after it, are expected to fit the hours."""
    space, widened = setting.space, setting.widened
    first, *later = budgets(space.rungs, space.keep)
    at_first, at_last = (
        [widened.spelled(trial.candidate, setting.volume, budget) for trial in trials]
        for budget in (first, 1.0)
    )
    whole = _seconds(setting, at_last) / len(trials)
    promotions = sum(
        budget * max(1, len(trials) // space.keep**rung) for rung, budget in enumerate(later, start=1)
    )
    repeats = 2 * (space.repeats - 1)
    return _seconds(setting, at_first) + (promotions + repeats) * whole <= setting.seconds


def _seconds(setting: Setting, texts: list[str]) -> float:
    study = setting.widened.study(*dict.fromkeys(texts))
    return predicted_seconds(study, setting.root, study.parsed_orderings[1:], setting.target.parts)
