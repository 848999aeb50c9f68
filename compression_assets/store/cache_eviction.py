"""Keeping the local copies of shared artifacts below COMPRESSION_CACHE_GB: what was used longest ago goes first."""

import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.store.manifests import MANIFEST, read_manifest

VARIABLE = "COMPRESSION_CACHE_GB"
GRACE = 600.0
"""Seconds after its last use in which a copy stays: reports read without a lock."""


def evict(root: Path, unused: Callable[[Path], AbstractContextManager[bool]]) -> int:
    """Remove copies until the others fit; bytes that are free now.

    root: the study's directory. unused: whether nobody on this host uses a copy, and nobody begins to in its context.
    """
    limit = cache_limit()
    if limit is None:
        return 0
    copies = sorted(_copies(root))
    excess = sum(size for _, size, _ in copies) - limit
    freed = 0
    for used, size, directory in copies:
        if freed >= excess or time.time() - used < GRACE:
            break
        with unused(directory) as free:
            # Another process may have read it since, or have made room itself.
            if not free or _last_used(directory) != used:
                continue
            # A rename first: killed in between, what is left is no artifact.
            gone = directory.with_name(f".replaced-{directory.name}.evicted")
            directory.rename(gone)
            shutil.rmtree(gone)
        freed += size
    return freed


def cache_limit() -> float | None:
    """Bytes that the copies of a study may take, None without a limit. Raises StudyError for what is no size."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not size > 0:
        raise StudyError(f"{VARIABLE} is {text!r}: write the size of the cache in GB, such as 200")
    return size * 1e9


def _copies(root: Path) -> list[tuple[float, int, Path]]:
    """(Time of the last use, bytes, directory) of every copy that is complete."""
    found = []
    for file in root.glob(f"*/*/{MANIFEST}"):
        if file.parent.name.startswith(".") or (used := _last_used(file.parent)) is None:
            continue
        with suppress(FileNotFoundError):  # removed meanwhile
            found.append((used, read_manifest(file.read_text()).total_bytes, file.parent))
    return found


def _last_used(directory: Path) -> float | None:
    """When a copy was read last; None once it is gone."""
    try:
        return (directory / MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return None
