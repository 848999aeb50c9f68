"""What a step on another machine is told by its driver, and what it refuses."""

import json
import os
import platform
from functools import cache
from hashlib import sha256
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.machine.cluster import RAY, STORE
from compression_assets.machine.lease import CHECK_VARIABLE
from compression_assets.machine.liveness import die_when_cut_off
from compression_assets.store.fingerprints import LIBRARIES, installed_version
from compression_assets.study.files import presets, study_file
from compression_assets.study.places import STUDY_TEXT, named_study

DRIVER = "COMPRESSION_DRIVER"
"""In a step's environment: code and library versions of its driver, as JSON."""

STEP_CPUS = "COMPRESSION_STEP_CPUS"
PASSED = (RAY, STORE, STEP_CPUS, CHECK_VARIABLE)
"""No secrets: those are in the environment of each host, from before Ray was started there."""

_PACKAGE = Path(__file__).parents[2]


def step_cpus() -> int:
    """CPUs, and threads, of a step: COMPRESSION_STEP_CPUS, by default 1.

    The same on every host: sums over other numbers of threads differ in their last digits. Raises StudyError for what
    is no whole number of at least 1.
    """
    text = os.environ.get(STEP_CPUS) or "1"
    if not text.isdecimal() or int(text) < 1:
        raise StudyError(f"{STEP_CPUS} is {text!r}; set it to a whole number of at least 1, or unset it")
    return int(text)


def environment() -> dict[str, str]:
    """Variables of a step's process, over those of its host."""
    named = named_study()
    handed = {name: os.environ[name] for name in PASSED if os.environ.get(name)}
    handed |= {"COMPRESSION_STUDY": named, DRIVER: json.dumps(versions())}
    # A host's own home would be taken for that of another study.
    handed |= {"DAGSTER_HOME": "", "OMP_NUM_THREADS": str(step_cpus())}
    if named not in presets():
        file = study_file(named).resolve()
        handed |= {"COMPRESSION_STUDY": str(file), STUDY_TEXT: file.read_text(encoding="utf-8")}
    return handed


def join_the_run() -> None:
    """Begin a step of a run that is driven from another process, on whatever host; without one, nothing is done.

    Raises StudyError when code or libraries here are not the driver's: results would mix.
    """
    text = os.environ.get(DRIVER)
    if text is None:
        return
    die_when_cut_off()
    wanted, here = json.loads(text), versions()
    differing = [name for name in here if wanted.get(name) != here[name]]
    if differing:
        name = differing[0]
        raise StudyError(
            f"{platform.node()} has {name} {here[name]}, and the driver of this run has {wanted.get(name)}: install "
            "the same on every host, then start Ray there again"
        )


@cache
def versions() -> dict[str, str]:
    """What has to be the same on every host: the package's code, Python, and the libraries that decide results."""
    return {
        "compression_assets": _code(),
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{name: installed_version(name) for name in (*LIBRARIES, "dagster")},
    }


def _code() -> str:
    """First digits of a SHA-256 over the package's files."""
    found = sha256()
    for file in sorted(_PACKAGE.rglob("*")):
        if file.suffix in (".py", ".yaml", ".json", ".jsonl", ".csv"):
            found.update(f"{file.relative_to(_PACKAGE)}\0".encode())
            found.update(sha256(file.read_bytes()).digest())
    return found.hexdigest()[:12]
