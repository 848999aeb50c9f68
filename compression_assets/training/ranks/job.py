"""What the ranks of one training are told and what they leave, as files in a directory that they all see."""

import json
from pathlib import Path
from typing import Any

from compression_assets.strict import Strict
from compression_assets.training.resuming import Checkpoints
from compression_assets.training.schedule import TrainingRecipe

JOB, MODEL, DATASET = "job.json", "model", "dataset"
TRAINED, REPORT, FAILURE = "trained", "report.json", "failure.json"
"""TRAINED: the weights. FAILURE: left by a rank that gives up, with one of its keys, `error` or `memory`."""


class StoredTeacher(Strict):
    """A store of teacher logits, and the loss that is made of it; see `loop.Distil`."""

    directory: Path
    alpha: float
    temperature: float


class SavedIn(Strict):
    """The fields of `resuming.Checkpoints`."""

    directory: Path
    every: int
    identity: str

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.directory, self.every, self.identity)


class Job(Strict):
    """One training. kind: "cpu" or "cuda"; rank N computes on the Nth visible device.

    dtype: torch's name of the format computed with. rows_at_once: most rows in a forward pass of one rank.
    """

    recipe: TrainingRecipe
    seed: int
    kind: str
    dtype: str
    rows_at_once: int
    teacher: StoredTeacher | None = None
    saved: SavedIn | None = None

    def write(self, directory: Path) -> None:
        (directory / JOB).write_text(self.model_dump_json())

    @classmethod
    def read(cls, directory: Path) -> "Job":
        return cls.model_validate_json((directory / JOB).read_text())


def read_json(file: Path) -> dict[str, Any]:
    """A file's object; empty where there is no file."""
    return dict(json.loads(file.read_text())) if file.is_file() else {}
