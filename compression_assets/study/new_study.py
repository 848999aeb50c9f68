"""`compression init`: a first study file for a model and chats of a user's own, from a commented template."""

import importlib.resources
import json
import os
import re
from pathlib import Path
from string import Template

from compression_assets.errors import StudyError
from compression_assets.study.files import load_study
from compression_assets.study.model import Study

TEMPLATE = "new_study.yaml"
BRANCH = "main"


def write_study(model: str, chats: str, output: Path) -> Study:
    """Write a study file that loads, and return it as read.

    model: hub id (owner/name[@revision]), directory or GGUF file. chats: JSONL file or hub data set
    (owner/name[:split][@revision]; train, main). Local paths are written relative to the file.
    Raises StudyError when the file is there already, its name cannot name a study, or a source cannot be used.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise StudyError(f"{output} is no study file: its name must end in .yaml")
    if output.exists():
        raise StudyError(f"{output} is there already: choose another name with --output, or delete it")
    template = Template((importlib.resources.files("compression_assets") / "data" / TEMPLATE).read_text())
    text = template.substitute(
        name=name_of_file(output),
        model=json.dumps(_model(model, output.parent)),
        chats=json.dumps(_chats(chats, output.parent)),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    try:
        return load_study(output.absolute())
    except StudyError:
        output.unlink()
        raise


def name_of_file(output: Path) -> str:
    """Name of the study in a file: my-study.yaml -> my_study. What is no name is refused when the file is read."""
    return re.sub(r"[^a-z0-9_]", "_", output.stem.lower())


def _model(text: str, folder: Path) -> dict[str, str]:
    path = Path(text).expanduser()
    if path.suffix == ".gguf":
        return {"kind": "gguf", "path": _from(folder, path)}
    if path.is_dir():
        return {"kind": "directory", "path": _from(folder, path)}
    repo, _, revision = text.partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise StudyError(f"{text} is no directory, no .gguf file and no hub id (owner/name[@revision])")
    return {"kind": "hub", "repo": repo, "revision": revision or BRANCH}


def _chats(text: str, folder: Path) -> dict[str, str]:
    path = Path(text).expanduser()
    if path.suffix == ".jsonl" or path.is_file():
        return {"kind": "jsonl", "path": _from(folder, path)}
    data, _, revision = text.partition("@")
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?::([\w.-]+))?", data)
    if found is None:
        raise StudyError(
            f"{text} is no .jsonl file and no data set of the hub (owner/name[:split][@revision])"
        )
    return {"kind": "hub", "dataset": found[1], "revision": revision or BRANCH, "split": found[2] or "train"}


def _from(folder: Path, path: Path) -> str:
    """The path as the study file has it: relative to the file, unless it was given in full."""
    return str(path) if path.is_absolute() else os.path.relpath(path, folder)
