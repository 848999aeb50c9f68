"""The tables of a search: `search_trials` and `search_outcome`, from the ledger and the figures of the models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compression_assets.reporting.search import OUTCOME, TRIALS
from compression_assets.search.brackets import Setting
from compression_assets.search.found import Figures
from compression_assets.search.halving import budgets
from compression_assets.search.ledger import Ledger, Trial
from compression_assets.store.tables import write_table
from compression_assets.study.files import SEARCH
from compression_assets.study.orderings import parse_ordering

Rows = Sequence[dict[str, Any]]


def trial_rows(setting: Setting, ledger: Ledger, about: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each trial and rung, and one for each candidate that was left out. about: in every row."""
    study = setting.widened.study()
    figures = Figures(study, setting.root)
    rows = []
    for trial in ledger.trials():
        own = about | {
            "bracket": trial.bracket,
            "trial": trial.number,
            "ordering": trial.ordering,
            "predicted_mib": trial.predicted_mib,
        }
        if trial.why:
            rows.append(
                own | {"state": "left out", "why": trial.why, "rung": None, "value": None, "size_mib": None}
            )
        for rung, budget in enumerate(budgets(setting.space.rungs, setting.space.keep)):
            if rung in trial.values or rung in trial.failed:
                rows.append(own | _at_rung(setting, figures, trial, rung, budget, study.recipes))
    return rows


def _at_rung(
    setting: Setting, figures: Figures, trial: Trial, rung: int, budget: float, recipes: Any
) -> dict[str, Any]:
    text = setting.widened.spelled(trial.candidate, setting.volume, budget)
    ordering = parse_ordering(text, variants=recipes)
    return {
        "state": "measured" if rung in trial.values else "failed",
        "why": trial.failed.get(rung, ""),
        "rung": rung + 1,
        "budget": budget,
        "model": ordering.key,
        "model_ordering": text,
        "value": trial.values.get(rung),
        "size_mib": figures.size(ordering),
    }


def write_records(root: Path, folder: Path, trials: Rows, outcome: Rows) -> None:
    """Keep a search's rows in its folder, and make the study's tables of those of all its searches."""
    for name, rows in ((TRIALS, trials), (OUTCOME, outcome)):
        beside = folder / f".{name}.json"
        beside.write_text(json.dumps(list(rows), allow_nan=False))
        beside.replace(folder / f"{name}.json")
        everything = [
            row
            for file in sorted((root / SEARCH).glob(f"*/{name}.json"))
            for row in json.loads(file.read_text())
        ]
        write_table(root, name, everything)
