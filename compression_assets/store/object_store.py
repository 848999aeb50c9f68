"""An S3-compatible object store below one prefix, named by COMPRESSION_STORE; everything is read and written whole.

obstore takes keys and the server from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL, and
tries again for some minutes where a request fails. Nothing here knows what an artifact is.
"""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError, first_line

VARIABLE = "COMPRESSION_STORE"
PART = 16 * 2**20
"""Bytes that are sent or read at a time."""

INSTALL = "pip install 'compression-assets[cluster]'"


class Superseded(StudyError):
    """Somebody else has written the object since it was looked at."""


class ObjectStore:
    """Objects below `url`, such as s3://bucket/prefix. Raises StudyError where the store cannot be reached."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        if not self.url.startswith("s3://"):
            raise StudyError(f"{VARIABLE} is {url!r}: give it as s3://bucket/prefix")
        try:
            from obstore.store import from_url
        except ModuleNotFoundError as error:
            raise StudyError(f"{VARIABLE} is set, and its client is not installed: {INSTALL}") from error
        with self._explained():
            # A part may take long on a thin line; what answers nothing is given up after that and tried again.
            self._store: Any = from_url(self.url, client_options={"allow_http": True, "timeout": "600s"})

    def read(self, key: str) -> tuple[bytes, str] | None:
        """(content, ETag) of an object, None where there is none."""
        import obstore

        with self._explained():
            try:
                found = obstore.get(self._store, key)
                return bytes(found.bytes()), str(found.meta["e_tag"])
            except FileNotFoundError:
                return None

    def tag(self, key: str) -> str | None:
        """The ETag of an object, None where there is none."""
        import obstore

        with self._explained():
            try:
                return str(obstore.head(self._store, key)["e_tag"])
            except FileNotFoundError:
                return None

    def put(self, key: str, content: bytes | Path) -> None:
        """Write an object, whoever has written it before. It is there whole, or not at all."""
        import obstore

        with self._explained():
            obstore.put(self._store, key, content, chunk_size=PART, max_concurrency=4)

    def put_if_absent(self, key: str, file: Path) -> None:
        """Write an object whose key says its content, unless it is there."""
        import obstore

        with self._explained():
            with suppress(FileNotFoundError):
                if obstore.head(self._store, key)["size"] == file.stat().st_size:
                    return
            obstore.put(self._store, key, file, chunk_size=PART, max_concurrency=4)

    def commit(self, key: str, content: bytes, expected: str | None) -> None:
        """Write an object only if it still has the ETag `expected`; None: only if there is none.

        Raises Superseded otherwise. One who was answered too late and asks again finds its own content: that is no
        other's.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "create" if expected is None else {"e_tag": expected}
        with self._explained():
            try:
                obstore.put(self._store, key, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                found = self.read(key)
                if found is None or found[0] != content:
                    raise Superseded(
                        f"{self.url}/{key} was written by another process meanwhile; run again"
                    ) from error

    def download(self, key: str, file: Path, sha256: str) -> None:
        """Write an object to a file. Raises StudyError where there is none, or one of another content."""
        import obstore

        file.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        with self._explained():
            try:
                stream = obstore.get(self._store, key).stream(min_chunk_size=PART)
            except FileNotFoundError as error:
                raise StudyError(f"{self.url}/{key} is missing") from error
            with file.open("wb") as handle:
                for part in stream:
                    handle.write(part)
                    found.update(part)
                handle.flush()
                os.fsync(handle.fileno())
        if found.hexdigest() != sha256:
            raise StudyError(f"{self.url}/{key} came with sha256 {found.hexdigest()[:12]}…")

    def objects(self, prefix: str) -> Iterator[dict[str, Any]]:
        """{path, e_tag, size, last_modified} of every object below a folder."""
        import obstore

        with self._explained():
            for page in obstore.list(self._store, prefix=prefix):
                yield from page

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; one that is not there is no error."""
        import obstore

        if gone := list(keys):
            with self._explained(), suppress(FileNotFoundError):
                obstore.delete(self._store, gone)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """obstore's errors as a sentence; those that its callers tell apart pass."""
        from obstore.exceptions import BaseError

        try:
            yield
        except BaseError as error:
            raise StudyError(
                f"the object store {self.url} cannot be used ({first_line(error)[:300]}); see to {VARIABLE}, the "
                "AWS_* variables and the server, then run again: finished work is kept"
            ) from error


def store_of(root: Path) -> ObjectStore | None:
    """The object store of a study, None on one machine. root: the study's directory, whose name is the study's."""
    url = os.environ.get(VARIABLE)
    return ObjectStore(f"{url.rstrip('/')}/{root.name}") if url else None


def refuse_unconditional(store: ObjectStore) -> None:
    """Raise StudyError for a store that writes what a condition forbids: two hosts would undo each other's work."""
    key = f".conditions-{uuid.uuid4().hex}"
    try:
        store.commit(key, b"first", expected=None)
        first = store.tag(key)
        _must_refuse(store, key, b"second", None, "If-None-Match: *")
        store.commit(key, b"third", expected=first)
        _must_refuse(store, key, b"fourth", first, "If-Match")
    finally:
        store.delete([key])


def _must_refuse(store: ObjectStore, key: str, content: bytes, expected: str | None, condition: str) -> None:
    try:
        store.commit(key, content, expected)
    except Superseded:
        return
    raise StudyError(
        f"{store.url} does not keep the condition {condition}: it answers a second write with success instead of 412, "
        "and two hosts would overwrite each other's results; use a store that does (AWS S3, SeaweedFS 4.48)"
    )
