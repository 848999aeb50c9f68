"""Who gave the judged scores: G-Eval is what a judge that is asked gives; one that is read gives something else."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compression_assets.evaluation.judging.calibration import WEAK
from compression_assets.evaluation.judging.settings import JudgeSettings
from compression_assets.evaluation.metrics import JUDGED, Metric, metric

Rows = Mapping[str, Mapping[str, Any]]
"""Metric -> row of metrics.<model>."""

READ = {"likelihood": "by likelihood", "embedding": "by embedding"}
"""Kind of a judge that is read -> how titles of its scores say so."""
NOT_G_EVAL = "judge's score"
"""What the column g_eval is called then: it is neither the paper's method nor on its scale."""
NAMED_IN = "judge_accuracy"
"""The row whose note names the judge of a model's scores."""


def shown_metric(name: str, judge: JudgeSettings | None) -> Metric:
    """A metric as a study with this judge shows it: "relevance (by likelihood)"."""
    known = metric(name)
    how = READ.get(judge.model.kind) if judge and known.group == JUDGED else None
    if how is None:
        return known
    return replace(known, title=f"{title_of_any(name)} ({how})")


def title_of_any(name: str) -> str:
    """What a judged metric is called whoever judges: as a judge that is asked and one that is read share it."""
    return NOT_G_EVAL if name == "g_eval" else metric(name).title


def judge_of(rows: Rows) -> str:
    """Name of the judge that scored a model; "" where none did."""
    return _note(rows.get(NAMED_IN, {})).removeprefix("judge: ")


def introduced(name: str, judge: JudgeSettings | None) -> str:
    """A judge with its kind, and what its scores are, in a few words; "" where there is none."""
    if not name or judge is None:
        return ""
    if judge.model.kind in READ:
        return f"{name}, which is read and not asked: its scores are not G-Eval's, and on another scale"
    return f"{name} ({judge.model.kind}), asked for G-Eval's scores"


def weaknesses(rows: Rows) -> dict[str, str]:
    """Metric -> kinds of answers that its judge mistakes although it passed its test: "weak on copying (1 of 30)"."""
    notes = {name: _note(row).partition(";")[0] for name, row in rows.items()}
    return {name: note for name, note in notes.items() if note.startswith(WEAK)}


def _note(row: Mapping[str, Any]) -> str:
    return str(row.get("note") or "")
