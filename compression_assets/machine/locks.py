"""File locks between processes: the kernel drops them with the process that holds them, however it ends.

A lock's file says who holds it, so that whoever waits can be told. What is locked is said by `gpu` (devices) and
`artifact_store` (artifacts).
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from compression_assets.errors import StudyError

POLL_SECONDS = 0.2
SAY_EVERY = 60.0
"""Seconds between two messages of somebody who waits."""

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

Waiting = Callable[[str], None]
"""Called with what is waited for (such as a lock's holder), at first and again every SAY_EVERY seconds."""


def try_lock(file: Path, holder: str, *, shared: bool = False) -> IO[str] | None:
    """The open, locked file, or None when somebody else has it; closing it gives the lock back.

    shared: among readers. Raises StudyError on a file system without locks.
    """
    handle = _open(file)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError as error:
        handle.close()
        if error.errno not in NO_LOCKS:
            raise
        raise StudyError(
            f"the file system of {file.parent} has no file locks ({error.strerror}); "
            "set COMPRESSION_STORAGE to a directory on a local disk"
        ) from error
    if handle.writable():
        handle.seek(0)
        handle.truncate()
        handle.write(f"{holder} (process {os.getpid()})\n")
        handle.flush()
    return handle


@contextmanager
def locked(file: Path, holder: str, waiting: Waiting, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a file, after waiting for it as long as it takes."""
    said = -SAY_EVERY
    while (handle := try_lock(file, holder, shared=shared)) is None:
        if time.monotonic() - said >= SAY_EVERY:
            said = time.monotonic()
            waiting(holder_of(file))
        time.sleep(POLL_SECONDS)
    with handle:
        yield


def holder_of(file: Path) -> str:
    """Who locked the file last: a name and a process."""
    try:
        return file.read_text().strip() or "somebody"
    except OSError:
        return "another user"


def _open(file: Path) -> IO[str]:
    """The file for reading and writing, or for reading where it is another user's: that is enough to lock it."""
    try:
        # Not created by this call: of a file in /tmp that is another user's, Linux may refuse that (protected_regular).
        return file.open("r+")
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("a+")
        if os.fstat(handle.fileno()).st_uid == os.getuid():
            os.fchmod(handle.fileno(), 0o666)
        return handle
    except PermissionError:
        return file.open("r")
