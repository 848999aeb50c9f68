"""What this machine has and lacks for a study. It looks, and changes nothing; of keys it tells the names only."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines import llama_cpp, vllm
from compression_assets.evaluation.engines.settings import LLAMA_CPP, VLLM
from compression_assets.machine import shared_locks
from compression_assets.planning.devices import CARDS, CPU, GIB, Device, device
from compression_assets.planning.fit import refuse_unfit
from compression_assets.planning.plan import make_plan
from compression_assets.planning.rows import Plan
from compression_assets.sources.models import HubModel
from compression_assets.store import object_store
from compression_assets.study.files import sources_of
from compression_assets.study.model import Study
from compression_assets.study.places import storage_root, study_root

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "bitsandbytes",
    "compressed-tensors",
    "safetensors",
    "datasets",
    "duckdb",
    "dagster",
    "gguf",
)
HUB = "https://huggingface.co"
KEYS = ("HF_TOKEN",)
SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """about: a word or two. ok: None for what is only told. detail: what was found, and what to do if it lacks."""

    about: str
    ok: bool | None
    detail: str


def examine(study: Study) -> list[Finding]:
    """Everything that a study asks of a machine, in the order in which it would be missed."""
    found = [_python(), *_packages(), *_device(study), *_models(study)]
    # What a model cannot go through cannot be planned either, and is said once.
    planned, finding = (None, None) if found[-1].ok is False else _planned(study)
    found += [finding] if finding else []
    if planned is not None:
        found += [_memory(planned), _disk(planned)]
    return [*found, *_engines(study), *_network(study), *_keys(study), *_shared(study)]


def _nvidia_is_there() -> bool:
    """Told without importing torch, which may be what is missing."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Finding(
        "python", ok, version if ok else f"{version}; 3.11 or 3.12 is needed: make setup PYTHON=python3.12"
    )


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed: make setup")


def _device(study: Study) -> Iterator[Finding]:
    wants_card = isinstance(study.base_model, HubModel)
    if not _nvidia_is_there():
        lacks = (
            "no NVIDIA device; this study's model is made for one (compression plan says how long without)"
        )
        yield Finding("CUDA", not wants_card, lacks if wants_card else "none, and none is needed")
        return
    import torch

    if not torch.cuda.is_available():
        yield Finding(
            "CUDA", False, "there is an NVIDIA device, but this torch finds none: install torch's CUDA build"
        )
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield Finding("CUDA", True, f"{about.name}, {about.total_memory / GIB:.0f} GiB")


def _planned(study: Study) -> tuple[Plan | None, Finding | None]:
    try:
        here = _this_device()
        return make_plan(study, here, storage_root() / ".downloads", study_root(study)), None
    except StudyError as error:
        return None, Finding("plan", None, str(error))


def _models(study: Study) -> Iterator[Finding]:
    """Whether every model can go through what the study asks of it."""
    try:
        notes = refuse_unfit(study, storage_root() / ".downloads", study_root(study))
    except StudyError as error:
        yield Finding("models", False, str(error))
        return
    yield Finding("models", None if notes else True, "; ".join(notes) or "each can go through its steps")


def _engines(study: Study) -> Iterator[Finding]:
    """What runs exported models, and whether the study measures any there."""
    wanted = {served.engine for served in study.evaluation.serving}
    there = {
        LLAMA_CPP: f"xllamacpp {metadata.version('xllamacpp')}" if llama_cpp.available() else "",
        VLLM: os.environ.get(vllm.SETTING, ""),
    }
    install = {LLAMA_CPP: llama_cpp.INSTALL, VLLM: vllm.INSTALL}
    for engine, found in there.items():
        lacks = f"not there; {'evaluation.serving wants it' if engine in wanted else 'optional'}: {install[engine]}"
        yield Finding(engine, True if found else False if engine in wanted else None, found or lacks)


def _this_device() -> Device:
    if not _nvidia_is_there():
        return device(CPU)
    import torch

    if not torch.cuda.is_available():
        return device(CPU)
    about = torch.cuda.get_device_properties(0)
    nearest = min(CARDS.values(), key=lambda card: abs(card.memory - about.total_memory))
    return Device(
        about.name,
        "cuda",
        int(about.total_memory),
        nearest.flops,
        nearest.training,
        nearest.scoring,
        nearest.disk,
        f"taken for a {nearest.name}",
    )


def _memory(plan: Plan) -> Finding:
    largest = max((row for row in plan.rows if row.memory), key=lambda row: row.memory or 0, default=None)
    if largest is None:
        return Finding("memory", None, "what the steps need cannot be told for this architecture")
    need = f"{(largest.memory or 0) / GIB:.1f} GiB at most ({largest.asset}), {plan.device.memory / GIB:.0f} there"
    return Finding("memory", not plan.misfits, f"{need}; {'; '.join(plan.misfits)}" if plan.misfits else need)


def _disk(plan: Plan) -> Finding:
    root = storage_root()
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free + _held(root / plan.study)
    text = f"{plan.disk / GIB:.1f} GiB for the study in {root}, {free / GIB:.1f} free or the study's already"
    return Finding(
        "disk", free >= plan.disk, text if free >= plan.disk else f"{text}: set COMPRESSION_STORAGE"
    )


def _held(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def _network(study: Study) -> Iterator[Finding]:
    sources = [source for _, source, _ in sources_of(study)]
    if (clarity := study.evaluation.clarity) is not None:
        sources.append(clarity.embedding_model)
    if any(source.kind == "hub" for source in sources):
        yield _reachable("hub", HUB, "models and data sets of this study come from it")
    if any(source.kind == "wheel" for source in sources):
        wheels = storage_root() / ".downloads" / "wheels"
        if wheels.is_dir() and any(wheels.iterdir()):
            yield Finding("package index", None, f"not asked: wheels are kept in {wheels}")
        else:
            index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
            yield _reachable("package index", index, "this study's wheels come from it")


def _reachable(about: str, address: str, why: str) -> Finding:
    import httpx

    shown = httpx.URL(address).host
    try:
        answer = httpx.head(address, timeout=SECONDS, follow_redirects=True)
    except (httpx.HTTPError, OSError) as error:
        return Finding(about, False, f"{shown} cannot be reached ({type(error).__name__}), and {why}")
    return Finding(about, answer.status_code < 500, f"{shown} answers with {answer.status_code}")


def _keys(study: Study) -> Iterator[Finding]:
    """Names of the secrets that the study may use, and whether each is set."""
    judge = study.evaluation.judge
    key = getattr(judge.model, "api_key_env", None) if judge else None
    wanted = [*KEYS, *([key] if key else [])]
    for name in wanted:
        needed = name not in KEYS
        there = bool(os.environ.get(name))
        detail = (
            "set" if there else f"not set; {'the judge needs it' if needed else 'public models need none'}"
        )
        yield Finding(name, there if needed else None, detail)


def _shared(study: Study) -> Iterator[Finding]:
    """What a study on several hosts rests on; nothing on one machine."""
    if os.environ.get(object_store.VARIABLE):
        yield _tried("object store", "writes only what a condition allows", lambda: _conditions(study))
    if os.environ.get(shared_locks.VARIABLE):
        yield _tried("PostgreSQL", "answers", lambda: shared_locks.connect("doctor").close())


def _conditions(study: Study) -> None:
    store = object_store.store_of(study_root(study))
    assert store is not None
    object_store.refuse_unconditional(store)


def _tried(about: str, good: str, attempt: Callable[[], None]) -> Finding:
    try:
        attempt()
    except StudyError as error:
        return Finding(about, False, str(error))
    return Finding(about, True, good)


def as_text(findings: list[Finding]) -> str:
    """One line a finding."""
    sign: Callable[[bool | None], str] = lambda ok: {True: "ok   ", False: "LACKS", None: "–    "}[ok]  # noqa: E731
    width = max(len(finding.about) for finding in findings)
    return "\n".join(
        f"{sign(finding.ok)}  {finding.about.ljust(width)}  {finding.detail}" for finding in findings
    )
