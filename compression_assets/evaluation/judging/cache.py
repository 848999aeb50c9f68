"""Every answer of a judge on disk, so that nothing is asked or paid twice. Knows no judge and no network.

One JSON file an answer, written aside and renamed: a killed process leaves none half-written, and any number of
processes may read and write at once. Deleting the directory is safe; the questions are then asked again. Where hosts
share an object store, an answer that any of them has paid for is there as well.
"""

import json
import os
from pathlib import Path
from typing import Any

from compression_assets.evaluation.judging.replies import Reply, Shape
from compression_assets.store.fingerprints import fingerprint
from compression_assets.store.object_store import ObjectStore

FOLDER = "judge_answers"
"""Of the object store."""

_ASIDE = ".aside-"


class AnswerCache:
    """Answers of judges under `directory`, by hash of (judge, prompt, schema). remote: where hosts share them."""

    def __init__(self, directory: Path, remote: ObjectStore | None = None):
        self.directory = Path(directory)
        self._remote = remote
        self.directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(self.directory)

    def get(self, judge: dict[str, Any], prompt: str, shape: Shape) -> Reply | None:
        """A stored answer; None when there is none, or none that can be read."""
        try:
            stored = json.loads(self._content(self._file(judge, prompt, shape)))
            top = stored["top"]
            pairs = None if top is None else tuple((str(token), float(value)) for token, value in top)
            return Reply(str(stored["text"]), pairs, int(stored["tokens"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, judge: dict[str, Any], prompt: str, shape: Shape, reply: Reply) -> None:
        """Store an answer durably. The prompt is kept beside it for whoever wants to look."""
        file = self._file(judge, prompt, shape)
        content = {
            "judge": judge,
            "prompt": prompt,
            "text": reply.text,
            "top": reply.top,
            "tokens": reply.tokens,
        }
        self._write(file, json.dumps(content, indent=1))
        if self._remote:
            self._remote.put(f"{FOLDER}/{file.name}", file)

    def _content(self, file: Path) -> str:
        """Raises FileNotFoundError where no host has asked."""
        if self._remote and not file.exists():
            found = self._remote.read(f"{FOLDER}/{file.name}")
            if found is not None:
                self._write(file, found[0].decode())
        return file.read_text()

    def _write(self, file: Path, text: str) -> None:
        aside = self.directory / f"{_ASIDE}{file.stem}.{os.getpid()}"
        with aside.open("w") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, file)

    def _file(self, judge: dict[str, Any], prompt: str, shape: Shape) -> Path:
        key = fingerprint({"judge": judge, "prompt": prompt, "schema": shape.schema()})
        return self.directory / f"{key}.json"


def _remove_leftovers(directory: Path) -> None:
    for file in directory.glob(f"{_ASIDE}*"):
        pid = file.name.rpartition(".")[2]
        if not Path(f"/proc/{pid}").exists():
            file.unlink(missing_ok=True)
