"""Wheels made on the spot, for the tests of sources. No tests in here."""

import zipfile
from pathlib import Path

from compression_assets.sources.wheels import WheelFile
from compression_assets.store.fingerprints import file_sha256


def put_wheel(cache: Path, files: dict[str, bytes]) -> WheelFile:
    """A wheel in the cache as if pip had downloaded it; the pin of its first file."""
    cache.mkdir(exist_ok=True)
    path = cache / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    sha = file_sha256(path)
    (cache / "wheels").mkdir()
    path.rename(cache / "wheels" / f"demo-1.0-{sha[:16]}.whl")
    return WheelFile(package="demo", version="1.0", sha256=sha, file=next(iter(files)))
