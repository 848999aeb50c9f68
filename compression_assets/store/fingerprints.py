"""What makes two results the same: hashes of settings, of files and of library versions; of code: `code_fingerprints`.

A finished step is reused only while its fingerprint is unchanged, so everything that can change a
result has to reach one of these functions.
"""

import hashlib
import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "tokenizers", "bitsandbytes", "safetensors")


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(file: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@cache
def installed_version(library: str) -> str:
    """Version of an installed library, read from its metadata once: many assets ask for the same one.

    Raises importlib.metadata.PackageNotFoundError when it is not installed.
    """
    return importlib.metadata.version(library)


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide what a step computes."""
    return {name: installed_version(name) for name in LIBRARIES}
