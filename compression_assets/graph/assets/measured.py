"""Measurements between an artifact and the database: written once as a file, recorded with their intervals.

An artifact keeps what was measured; the database is filled from it and can be filled again. Intervals are computed on
the way, so that another confidence level measures nothing anew.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg

from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.statistics import with_intervals
from compression_assets.graph.resources import StudyStorage
from compression_assets.store.artifact_store import Manifest
from compression_assets.study.leaderboard_models import LeaderboardModel
from compression_assets.study.model import Study
from compression_assets.study.names import relative_directory
from compression_assets.tables import markdown

MEASURED = "metrics.json"


def write_measured(
    directory: Path, rows: Sequence[MetricRow], samples: Sequence[Sample], run_id: str
) -> None:
    """What was measured as one JSON file in the artifact's directory."""
    content = {
        "run_id": run_id,
        "rows": [asdict(row) for row in rows],
        "samples": [asdict(sample) for sample in samples],
    }
    (directory / MEASURED).write_text(json.dumps(content, indent=1, allow_nan=False))


def read_measured(directory: Path) -> tuple[list[MetricRow], list[Sample], str]:
    """Rows, samples and the run that measured them."""
    content = json.loads((directory / MEASURED).read_text())
    rows = [MetricRow(**row) for row in content["rows"]]
    return rows, [Sample(**sample) for sample in content["samples"]], content["run_id"]


def record(
    study: Study,
    storage: StudyStorage,
    entry: LeaderboardModel,
    part: str,
    manifest: Manifest,
    lineage: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Copy one artifact's measurements into the database, with intervals; returns metadata for Dagster.

    part: which of a model's artifacts this is ("metrics", "quality", …), whose manifest is `manifest`.
    """
    root = storage.artifacts.root
    model = storage.artifacts.require(
        root / relative_directory(entry.model), entry.model, manifest.asset, verify=False
    )
    measured, samples, run_id = read_measured(root / relative_directory(entry.asset(part)))
    filled = with_intervals(measured, samples, study.evaluation.statistics, study.seed)
    about = {
        "data_version": model.data_version,
        "run_id": run_id,
        "measured_at": manifest.created_at,
    }
    merged = storage.database.write_part(
        entry.key,
        entry.title,
        entry.position,
        part,
        [asdict(one) | about for one in filled],
        [asdict(sample) for sample in samples],
        lineage,
    )
    shown: dict[str, Any] = {one.metric: one.value for one in filled}
    shown |= {f"{one.metric}_note": one.note for one in filled if one.note}
    columns = ("metric", "value", "lo", "hi", "unit", "n", "n_failed", "note")
    table = markdown(columns, [[getattr(one, name) for name in columns] for one in filled])
    return {
        "figures": dg.MetadataValue.md(table),
        **shown,
        "sql": dg.MetadataValue.md(f"`SELECT * FROM metrics.{entry.key}`"),
        "waiting_writes": merged.waiting,
    }
