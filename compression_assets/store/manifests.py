"""What an artifact is and what made it: the manifest that makes a directory complete.

A manifest says the same on every machine. When its files were last written is a matter of one disk, and is kept in a
file of its own: (mtime, ctime) in ns by name, by which an unchanged file is recognised without reading it.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compression_assets.store.fingerprints import file_sha256

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what made it; written last, so its presence means 'complete'.

    fingerprint: hash of everything that decides the content (recipe, code, library versions, seed,
    data versions of the inputs). data_version: hash of the content itself.
    parent: asset key of the model it was made from, if any. seconds, peak_memory_bytes: of the step.
    checks: list of {name, passed, detail, blocking}. metadata: whatever the step reported (JSON).
    """

    asset: str
    fingerprint: str
    data_version: str
    files: dict[str, FileRecord]
    created_at: str
    parent: str | None = None
    technique: str | None = None
    path: list[str] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_fingerprint: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    device: str | None = None
    tokens_seen: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    checks: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    manifest_version: int = MANIFEST_VERSION

    @property
    def total_bytes(self) -> int:
        return sum(record.bytes for record in self.files.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the published weights of a model; its float32 masters are in a directory of their own."""
        return sum(
            record.bytes
            for name, record in self.files.items()
            if "/" not in name and name.endswith(".safetensors")
        )

    @property
    def failed_checks(self) -> list[str]:
        """Names of the integrity checks that failed; a failed quality check is a warning only."""
        return [check["name"] for check in self.checks if check["blocking"] and not check["passed"]]

    def as_text(self) -> str:
        """As JSON. Raises ValueError for NaN, which JSON does not have."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def without(manifest: Manifest, folder: str, mark: str, record: FileRecord) -> Manifest:
    """The manifest once the files of a folder are gone and `mark`, a file with that record, says so."""
    kept = {name: found for name, found in manifest.files.items() if not name.startswith(f"{folder}/")}
    return replace(manifest, files={**kept, mark: record})


def read_manifest(text: str) -> Manifest:
    """What `Manifest.as_text` wrote. Raises ValueError, KeyError or TypeError for anything else.

    Those of earlier versions also have the times of their files, which are passed over.
    """
    raw = json.loads(text)
    files = {name: FileRecord(record["bytes"], record["sha256"]) for name, record in raw.pop("files").items()}
    return Manifest(files=files, **raw)


def files_of(folder: Path) -> list[Path]:
    """The files of an artifact, without its manifest."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)


def record_of(file: Path) -> FileRecord:
    return FileRecord(bytes=file.stat().st_size, sha256=file_sha256(file))


def write_durably(file: Path, text: str) -> None:
    with file.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def damage(directory: Path, manifest: Manifest, times: Path, *, thorough: bool) -> str | None:
    """What is wrong with an artifact's files, in a few words, or None.

    times: file of their times. thorough=False reads a file only when its own are not those. What anybody writes to a
    file moves its ctime, which nothing can set back; for masters/, as large as all else together, mtime is enough.
    """
    known = _known_times(times)
    moved = False
    for name, record in manifest.files.items():
        file = directory / name
        if not file.is_file():
            return f"{name} is missing"
        if (size := file.stat().st_size) != record.bytes:
            return f"{name} has {size:,} bytes, its manifest says {record.bytes:,}"
        before, now = known.get(name), _times(file)
        same_content = before is not None and before[0] == now[0]
        if not thorough and (before == now or (same_content and name.startswith("masters/"))):
            continue
        moved = moved or before != now
        if (found := file_sha256(file)) != record.sha256:
            return f"{name} has sha256 {found[:12]}…, its manifest says {record.sha256[:12]}…"
    if moved:
        keep_times(directory, manifest, times)
    return None


def keep_times(directory: Path, manifest: Manifest, times: Path) -> None:
    """Write down the times of files whose content is what the manifest says."""
    beside = times.with_name(f"{times.name}.{os.getpid()}")
    # On a disk that takes no writes the files are read again next time.
    with suppress(OSError):
        times.parent.mkdir(exist_ok=True)
        beside.write_text(json.dumps({name: _times(directory / name) for name in manifest.files}))
        os.replace(beside, times)


def _times(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_mtime_ns, stat.st_ctime_ns]


def _known_times(times: Path) -> dict[str, list[int]]:
    """Empty where nothing was kept: every file is then read once."""
    try:
        return dict(json.loads(times.read_text()))
    except (OSError, ValueError):
        return {}
