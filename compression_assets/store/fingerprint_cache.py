"""Code fingerprints that were found before, kept beside the bytecode as Python keeps what it compiled.

Importing the definitions asks for some twenty, and parsing the sources for them took a third of its time. What is kept
holds for the content of every source that a fingerprint may come from; after any change of one all are found anew.
"""

import hashlib
import json
import os
import sys
from contextlib import suppress
from functools import cache
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from compression_assets.store.code_fingerprints import PACKAGE, code_fingerprint, packages_of
from compression_assets.store.fingerprints import fingerprint


@cache
def kept_code_fingerprint(*roots: str) -> str:
    """`code_fingerprint(*roots)`, without parsing where these sources were parsed before."""
    sources = {package: _sources(package) for package in packages_of(roots)}
    key = fingerprint([sys.version, sources, roots])
    known = _known()
    if key not in known:
        known[key] = code_fingerprint(*roots)
        _keep(known)
    return known[key]


@cache
def _known() -> dict[str, str]:
    """Key -> fingerprint; empty where nothing can be read, or where it is of other sources and would only pile up."""
    try:
        kept = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return kept["found"] if kept["sources"] == _sources(PACKAGE) else {}


def _keep(known: dict[str, str]) -> None:
    file = _file()
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    # An installed package may lie where nobody writes; then every import parses.
    with suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        beside.write_text(json.dumps({"sources": _sources(PACKAGE), "found": known}))
        beside.replace(file)


def _file() -> Path:
    return Path(cache_from_source(__file__)).with_suffix(".json")


@cache
def _sources(package: str) -> str:
    """SHA-256 over the names and contents of a package's modules. Raises ModuleNotFoundError when there is none."""
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"there is no package {package} to fingerprint")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [(file.relative_to(folder), file) for folder in folders for file in folder.rglob("*.py")]
    if not folders and spec.origin:
        files = [(Path(package), Path(spec.origin))]
    found = hashlib.sha256()
    for name, file in sorted(files):
        content = file.read_bytes()
        found.update(f"{name} {len(content)}\n".encode() + content)
    return found.hexdigest()
