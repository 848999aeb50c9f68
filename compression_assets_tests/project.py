"""A study of a user's own in a folder, driven through the command line: real processes, a real database."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import yaml

from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.study.files import PRESETS
from compression_assets.study.names import TABLES
from compression_assets_tests import warm


class Project:
    """A study file of a user's own and a storage directory, driven through the command line."""

    workers = "1"
    """Steps of these tiny models take less time than a process each."""

    def __init__(self, folder: Path, **settings: Any):
        self.study_file = folder / "tiny.yaml"
        self.storage = folder / "my storage"
        self.root = self.storage / "tiny"
        self.storage.mkdir(exist_ok=True)
        raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
        self.write({**raw, "name": "tiny", **settings})

    def write(self, study: dict[str, Any]) -> None:
        text = yaml.safe_dump(study, sort_keys=False)
        if not self.study_file.exists() or self.study_file.read_text() != text:
            self.study_file.write_text(text)

    def read(self) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load(self.study_file.read_text())
        return content

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "COMPRESSION_STORAGE": str(self.storage),
            "COMPRESSION_STUDY": str(self.study_file),
            "COMPRESSION_WORKERS": self.workers,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def start(self, *arguments: str, cwd: Path | None = None, **extra: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            arguments,
            env={**self.environment, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd or self.storage,
        )

    def command(self, *arguments: str, cwd: Path | None = None, **extra: str) -> tuple[int, str]:
        process = self.start(*arguments, cwd=cwd, **extra)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def compression(self, *arguments: str, **extra: str) -> tuple[int, str]:
        if self.workers == "1":
            return warm.compression(arguments, {**self.environment, **extra}, self.storage)
        return self.command(sys.executable, "-m", "compression_assets.cli", *arguments, **extra)

    def dagster_home(self) -> str:
        code, output = self.compression("home")
        assert code == 0, output
        return output.strip()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self.root / "compression.duckdb"), read_only=True) as db:
            return db.execute(sql).fetchall()

    def versions(self) -> dict[str, str]:
        """Model -> data version, for every finished model directory; beside them lie those of a killed run."""
        store = ArtifactStore(self.root)
        found = {}
        for directory in (self.root / "models").glob("[!.]*"):
            manifest = store.manifest(directory, directory.name)
            assert manifest
            found[directory.name] = manifest.data_version
        return found


def changed(output: str) -> set[str]:
    """Assets that a run made (rather than found unchanged), from its progress lines."""
    lines = re.findall(r"\[ *\d+/\d+\] (\S+) +(\S+)", output)
    return {asset for asset, how in lines if how not in ("unchanged", "failed") and asset not in TABLES}
