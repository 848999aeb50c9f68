"""Files of a user's own that a study reads, on hosts that do not have them.

The host that has them puts them into the object store: <store>/.sources/<hash of the path>.json, and blobs below it.
Where the path of the study leads nowhere, a copy is read instead, whose content counts as the original's does.
"""

import json
import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from compression_assets.sources.local import local_files
from compression_assets.sources.models import AssetModel
from compression_assets.sources.paths import COPIES, local_path
from compression_assets.store.fingerprints import file_sha256, fingerprint
from compression_assets.store.object_store import VARIABLE, ObjectStore

FOLDER = ".sources"


def share_files(sources: Iterable[Any], root: Path) -> None:
    """Put the local files of these sources into the store, if there is one, unless they are as they were last time.

    root: the study's directory, where that is remembered. What another asset makes is shared once it is there.
    """
    store = _store()
    if store is None:
        return
    for source in sources:
        if (path := _path(source)) is None or path in COPIES:
            continue
        if isinstance(source, AssetModel) and not local_path(path).is_dir():
            continue
        files = local_files(source)
        state = fingerprint({str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files})
        known = root / ".shared_files" / _key(path)
        if known.exists() and known.read_text() == state:
            continue
        place = local_path(path)
        folder = place if place.is_dir() else place.parent
        index: dict[str, Any] = {"directory": place.is_dir(), "files": {}}
        for file in files:
            index["files"][file.relative_to(folder).as_posix()] = content = file_sha256(file)
            store.put_if_absent(_blob(content), file)
        store.put(f"{FOLDER}/{_key(path)}.json", json.dumps(index).encode())
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(state)


def find_files(sources: Iterable[Any]) -> None:
    """Fetch what these sources name and this host lacks, if another has shared it."""
    named = (path for source in sources if (path := _path(source)) is not None)
    missing = [path for path in named if path not in COPIES and not local_path(path).exists()]
    if not missing or (store := _store()) is None:
        return
    for path in missing:
        if found := store.read(f"{FOLDER}/{_key(path)}.json"):
            COPIES[path] = _fetched(store, Path(path).name, found[0])


def _fetched(store: ObjectStore, name: str, text: bytes) -> Path:
    """A copy in the user's cache, made once a content."""
    index = json.loads(text)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "compression_assets" / "sources" / sha256(text).hexdigest()[:16]
    if not folder.exists():
        work = folder.with_name(f".{folder.name}.{uuid4().hex}")
        for file, content in index["files"].items():
            store.download(_blob(content), work / name / file if index["directory"] else work / file, content)
        try:
            work.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return folder / name


def _store() -> ObjectStore | None:
    url = os.environ.get(VARIABLE)
    return ObjectStore(url) if url else None


def _path(source: Any) -> str | None:
    """What a source reads on the host that has it; None of one that comes from elsewhere."""
    path = getattr(source, "path", None)
    return None if path is None or str(path).startswith("package:") else str(path)


def _key(path: str) -> str:
    return sha256(path.encode()).hexdigest()[:32]


def _blob(content: str) -> str:
    return f"{FOLDER}/blobs/{content}"
