"""The end of a search: its winner and the study's best order, made with further seeds and held against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.graph.readers import readers
from compression_assets.reporting.database import refresh
from compression_assets.reporting.search import write_picture
from compression_assets.search.brackets import Setting, built
from compression_assets.search.found import Figures, Target
from compression_assets.search.ledger import Ledger, Trial
from compression_assets.search.outcome import repeated, verdict
from compression_assets.search.records import trial_rows, write_records
from compression_assets.study.leaderboard_models import parts
from compression_assets.study.model import Study
from compression_assets.study.orderings import BASE_ORDERING, Ordering, parse_ordering
from compression_assets.takeaway.cleaning import unneeded

PATIENCE = 60.0
"""Seconds to wait for another process that derives the database."""
ANSWERS_FINISHED = Target("answers_finished", "answers")


@dataclass(frozen=True)
class Found:
    """verdict: sentences. recipe: `techniques` and `orderings` for a study file. file: the study with every trial.

    model: its key. picture: quality against size, an SVG file. freeable: bytes that `compression clean` would free.
    """

    verdict: str
    recipe: dict[str, Any]
    file: Path
    model: str
    picture: Path
    freeable: int


def concluded(
    study: Study, setting: Setting, ledger: Ledger, written: list[Ordering], about: dict[str, Any]
) -> Found:
    """Repeat, compare, and write down what came of it. written: the study's orders within the size.

    Raises StudyError where no trial got to the full budget, KeyboardInterrupt when interrupted.
    """
    widened, root, target = setting.widened, setting.root, setting.target
    found = widened.add(_winner(setting, ledger).candidate, setting.volume)
    best = _best_written(study, setting, written)
    pairs = _repeated(study, setting, ledger, found, best)
    everything = widened.study()
    figures = Figures(everything, root)
    rows = repeated(study, figures, target, pairs)
    said = verdict(rows, target, setting.max_mib, study.evaluation.statistics.significance)
    said += _endings(figures, [found for found, _ in pairs])
    trials = trial_rows(setting, ledger, about)
    outcome = [{**about, **row.row(), "verdict": said} for row in rows]
    widened.write()
    write_records(root, widened.file.parent, trials, outcome)
    refresh(everything, root, patience=PATIENCE)
    picture = root / "reports" / f"search_{about['search']}.svg"
    own = [
        (one.text, size, value)
        for one in written
        if (size := figures.size(one)) is not None and (value := figures.value(one, target)) is not None
    ]
    write_picture(picture, trials, own)
    freeable = sum(item.bytes for item in unneeded(study, root, readers(study)))
    return Found(said, widened.recipe_of(found), widened.file, pairs[0][0].key, picture, freeable)


def _endings(figures: Figures, found: list[Ordering]) -> str:
    """How many of their answers the winner's models end, which perplexity does not show; "" where none is measured."""
    ended = [figures.value(one, ANSWERS_FINISHED) for one in found]
    base = figures.value(BASE_ORDERING, ANSWERS_FINISHED)
    if base is None or None in ended:
        return ""
    shares = ", ".join(f"{share:.2f}" for share in ended)
    return f" Share of its answers that it ends by itself: {shares} (the base: {base:.2f})."


def _winner(setting: Setting, ledger: Ledger) -> Trial:
    last = setting.space.rungs - 1
    known = [trial for trial in ledger.trials() if last in trial.values]
    if not known:
        raise StudyError(
            "no trial could be made and measured with the full budget: see the table search_trials for the reasons"
        )
    sign = -1 if setting.higher_is_better else 1
    return min(known, key=lambda trial: (sign * trial.values[last], trial.number))


def _best_written(study: Study, setting: Setting, written: list[Ordering]) -> Ordering | None:
    """The best of the study's orders within the size, by the goal and the study's own seed."""
    figures, sign = Figures(study, setting.root), -1 if setting.higher_is_better else 1
    values = {one: figures.value(one, setting.target) for one in written}
    sizes = {one: figures.size(one) for one in written}
    known = {
        one: value
        for one, value in values.items()
        if value is not None and (size := sizes[one]) is not None and size <= setting.max_mib
    }
    return min(known, key=lambda one: sign * known[one], default=None)


def _repeated(
    study: Study, setting: Setting, ledger: Ledger, found: str, best: Ordering | None
) -> list[tuple[Ordering, Ordering | None]]:
    """The winner and the study's best order with every seed, made and measured as the study asks where they can be."""
    widened, seeds = setting.widened, _seeds(study)
    texts = [found] if best is None else [found, best.text]
    seeded = {text: [text if seed is None else f"{text}@{seed}" for seed in seeds] for text in texts}
    everything = [widened.add_ordering(one) for text in texts for one in seeded[text]]
    widest = widened.study()
    figures = Figures(widest, setting.root)
    orderings = {one: parse_ordering(one, variants=widest.recipes) for one in everything}
    if any(not figures.has(one, part) for one in orderings.values() for part in parts(study)):
        setting.say(f"{' and '.join(texts)} with {len(seeds)} seeds")
        built(setting, ledger, everything, parts(study))
    return [
        (orderings[one], orderings[seeded[best.text][place]] if best else None)
        for place, one in enumerate(seeded[found])
    ]


def _seeds(study: Study) -> list[int | None]:
    """None, for the study's own, and others: those of the study, then the next numbers."""
    others = [seed for seed in study.seeds if seed != study.seed]
    others += [
        seed for seed in range(study.seed + 1, study.seed + study.search.repeats) if seed not in others
    ]
    return [None, *others[: study.search.repeats - 1]]
