"""Runs of a tiny study in processes that are killed: at a chosen file operation, or after a chosen time.

The processes are forked from the server of `warm`, so that a run costs its work and not its imports.
"""

import itertools
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_assets.store.artifact_store import ArtifactStore
from compression_assets_tests.project import Project
from compression_assets_tests.warm import PROCESSES

WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree", "shutil.move"}
TEMPORARY = (".building-*", ".replaced-*", ".scratch-*", "*.partial", ".tmp*", "*.tmp")


@dataclass(frozen=True)
class Fault:
    """What befalls a run: death before its `operation`-th change of the study's files, or `seconds` after it began to
    work; a clock that jumps by a day, back and forth."""

    operation: int | None = None
    seconds: float | None = None
    clock_jumps: bool = False


def small_project(folder: Path, orderings: list[str]) -> Project:
    """A study that is measured by perplexity alone: every artifact is made alike, and a run has to be short."""
    project = Project(folder, orderings=orderings, evaluation={"perplexity": {"batch_size": 8}})
    study = project.read()
    del study["data"]["questions"]
    project.write(study)
    return project


def run(project: Project, fault: Fault | None = None, limit: float = 240.0, **extra: str) -> int:
    """One `compression run` of the project in a process of its own; its exit code (negative: killed by that signal)."""
    environment = {**project.environment, "COMPRESSION_WORKERS": "1", **extra}
    process = PROCESSES.Process(target=_run, args=(environment, str(project.root), fault))
    process.start()
    process.join(limit)
    assert process.exitcode is not None, f"a run takes longer than {limit} s"
    return int(process.exitcode)


def operations(project: Project) -> int:
    """How many changes of files an undisturbed run of a project made."""
    return int((project.storage / "operations.txt").read_text())


def _run(environment: dict[str, str], root: str, fault: Fault | None) -> None:
    os.environ.update(environment)
    os.environ.pop("DAGSTER_HOME", None)
    log = Path(root).parent / "log.txt"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    counter = _Counter(root, fault.operation if fault else None)
    sys.addaudithook(counter)
    if fault and fault.seconds is not None:
        threading.Thread(target=_die_later, args=(Path(root), fault.seconds), daemon=True).start()
    if fault and fault.clock_jumps:
        _let_the_clock_jump()
    from compression_assets.graph.run import run_study

    succeeded = run_study()
    if fault is None:
        (Path(root).parent / "operations.txt").write_text(str(counter.seen))
    sys.exit(0 if succeeded else 1)


def _die_later(root: Path, seconds: float) -> None:
    """Counted from the first progress event, so that it is work that is interrupted and not Dagster's start."""
    before = set(root.glob("progress/*"))
    while not set(root.glob("progress/*")) - before:
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def _let_the_clock_jump() -> None:
    real, days = time.time, itertools.cycle((0, 1, -1, 30, 0, -30))
    time.time = lambda: real() + 86_400 * next(days)


class _Counter:
    """Counts what Python changes below a directory (Dagster's own history left out) and dies at the n-th change."""

    def __init__(self, root: str, last: int | None):
        self.root, self.last, self.seen = root, last, 0
        self.history = f"{root}/dagster_home"

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WRITES and not (event == "open" and _writes(arguments)):
            return
        path = str(arguments[0])
        if not path.startswith(self.root) or path.startswith(self.history):
            return
        self.seen += 1
        if self.seen == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def made(project: Project) -> dict[str, tuple[str, int]]:
    """Artifact -> when it was made and its manifest's time of change; every one is checked to be whole."""
    store = ArtifactStore(project.root)
    found = {}
    for file in sorted(project.root.glob("*/*/manifest.json")):
        if file.parent.name.startswith("."):
            continue
        manifest = store.manifest(file.parent, file.parent.name)
        assert manifest is not None
        assert store.damage(file.parent, manifest, thorough=True) is None, file.parent
        found[str(file.parent.relative_to(project.root))] = (
            manifest.created_at,
            file.stat().st_mtime_ns,
        )
    return found


def results(project: Project) -> dict[str, Any]:
    """What a study comes to: SHA-256 of all weights and data, and every number of every metric."""
    store = ArtifactStore(project.root)
    content: dict[str, Any] = {}
    for kind in ("models", "data", "logits"):
        for directory in sorted((project.root / kind).glob("[a-z]*")):
            manifest = store.manifest(directory, directory.name)
            assert manifest is not None
            content[f"{kind}/{directory.name}"] = {
                name: record.sha256 for name, record in manifest.files.items()
            }
    content["leaderboard"] = project.query("SELECT * FROM leaderboard ORDER BY ALL")
    for (model,) in project.query("SELECT model FROM leaderboard ORDER BY ALL"):
        content[f"metrics.{model}"] = project.query(
            f"SELECT metric, value, n FROM metrics.{model} ORDER BY ALL"
        )
        content[f"samples.{model}"] = project.query(
            f"SELECT metric, item, value FROM samples.{model} ORDER BY ALL"
        )
    return content


def temporary(project: Project) -> list[str]:
    """Temporary files and directories anywhere in the study, Dagster's own history left out."""
    found = [path for pattern in TEMPORARY for path in project.root.rglob(pattern)]
    return [str(path) for path in found if "dagster_home" not in path.parts]
