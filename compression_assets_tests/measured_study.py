"""A study whose measurements are made up: artifacts on disk as steps leave them, without a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from compression_assets.evaluation.measured import write_measured
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.store.artifact_store import ArtifactStore, Manifest
from compression_assets.study.files import PRESETS, load_study
from compression_assets.study.model import Study
from compression_assets.study.names import relative_directory

CREATED = "2026-01-01T00:00:00+00:00"


def small_study(folder: Path, *orderings: str, **changes: Any) -> Study:
    """The smoke study with these orderings, measured by perplexity alone; `changes` to its file."""
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
    raw |= {"name": "small", "orderings": list(orderings), "evaluation": {"perplexity": {"batch_size": 4}}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(raw | changes, sort_keys=False))
    return load_study(folder / "small.yaml")


def leave(
    root: Path, asset: str, files: Mapping[str, str] | None = None, fill: Any = None, **about: Any
) -> Manifest:
    """An artifact with these files (name -> content), in the place of an earlier one. fill: writes into it."""
    store = ArtifactStore(root)
    directory = root / relative_directory(asset)
    with store.exclusive(directory, asset), store.building(directory) as work:
        for name, content in (files or {}).items():
            (work / name).write_text(content)
        if fill is not None:
            fill(work)
        fields = {"asset": asset, "fingerprint": "f", "created_at": CREATED} | about
        return store.publish(work, directory, **fields)


def measure(
    root: Path, asset: str, rows: Sequence[MetricRow], samples: Sequence[Sample] = (), **about: Any
) -> Manifest:
    """A finished measurement. about: of its manifest."""
    about.setdefault("metadata", {"run_id": "r"})
    return leave(root, asset, fill=lambda work: write_measured(work, rows, samples), **about)


def row(metric: str, value: float | None, note: str = "", **more: Any) -> MetricRow:
    return MetricRow(metric, value, "1", 7, higher_is_better=False, note=note, **more)
