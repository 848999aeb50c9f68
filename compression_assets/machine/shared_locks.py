"""Locks between hosts: advisory locks of a PostgreSQL session, named by COMPRESSION_PG.

The server drops them with the connection, so a host that is lost gives its locks back within seconds. One that was only
cut off lives on without them: what it makes is refused where it would be published.
"""

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError, first_line
from compression_assets.machine.locks import POLL_SECONDS, SAY_EVERY, Waiting

if TYPE_CHECKING:
    import psycopg2.extensions

VARIABLE = "COMPRESSION_PG"
INSTALL = "pip install 'compression-assets[cluster]'"
PATIENCE = 120.0
"""Seconds to wait for a server that does not answer, as while it is restarted."""

IDLE, INTERVAL, COUNT = 5, 2, 3
ALIVE = {"idle": IDLE, "interval": INTERVAL, "count": COUNT}
"""Keepalives of both ends: a silent connection is asked after 5 s, then every 2 s, and given up after 3 questions."""

HOLDER_LENGTH = 63
"""Bytes that PostgreSQL keeps of a session's name."""

_HOLDERS = """
SELECT DISTINCT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = %s
"""


class SharedLocks:
    """Locks that one holder takes, all of them in one session; leaving its context gives them back.

    holder: who asks, such as an asset's key. Raises StudyError when the server cannot be reached.
    """

    def __init__(self, holder: str, waiting: Waiting):
        self._name = f"{holder[:30]}, held on {socket.gethostname()[:16]} (process {os.getpid()})"
        self._waiting = waiting
        self._taken: list[tuple[str, bool]] = []
        self._session = self._connect()

    def __enter__(self) -> "SharedLocks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def take(self, name: str, *, shared: bool = False) -> None:
        """Hold the lock `name`, after waiting for it as long as it takes; a server that is restarted is waited for."""
        import psycopg2

        said = -SAY_EVERY
        while True:
            try:
                if self._try(name, shared):
                    self._taken.append((name, shared))
                    return
                if time.monotonic() - said >= SAY_EVERY:
                    said = time.monotonic()
                    self._waiting(self._holders(name))
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                # With the session went what it held.
                self._session = self._connect()
                taken, self._taken = self._taken, []
                for other, was_shared in taken:
                    self.take(other, shared=was_shared)
                continue
            time.sleep(POLL_SECONDS)

    def _try(self, name: str, shared: bool) -> bool:
        function = "pg_try_advisory_lock_shared" if shared else "pg_try_advisory_lock"
        return bool(self._ask(f"SELECT {function}(%s)", lock_number(name))[0][0])

    def _holders(self, name: str) -> str:
        found = self._ask(_HOLDERS, lock_number(name))
        return ", ".join(sorted(holder for (holder,) in found)) or "somebody"

    def _ask(self, sql: str, value: int) -> list[tuple[Any, ...]]:
        with self._session.cursor() as cursor:
            cursor.execute(sql, (value,))
            return cursor.fetchall()

    def _connect(self) -> "psycopg2.extensions.connection":
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return connect(self._name)
            except StudyError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(1.0)


def connect(name: str) -> "psycopg2.extensions.connection":
    """A session of COMPRESSION_PG. name: shown to whoever waits for what it holds. Raises StudyError without one."""
    try:
        import psycopg2
    except ModuleNotFoundError as error:
        raise StudyError(f"{VARIABLE} is set, and its client is not installed: {INSTALL}") from error
    try:
        session = psycopg2.connect(
            os.environ[VARIABLE],
            application_name=name.encode()[:HOLDER_LENGTH].decode(errors="ignore"),
            connect_timeout=10,
            options=server_options(),
            tcp_user_timeout=(IDLE + INTERVAL * COUNT) * 1000,
            **{f"keepalives_{key}": value for key, value in ALIVE.items()},
        )
    except psycopg2.OperationalError as error:
        raise StudyError(
            f"the server of {VARIABLE} cannot be used ({first_line(error)}); see to it, then run again"
        ) from error
    except psycopg2.ProgrammingError:
        # What it says may hold the password.
        raise StudyError(
            f"{VARIABLE} cannot be read: write it as postgresql://user:password@host/database"
        ) from None
    session.autocommit = True
    return session


def server_options() -> str:
    """Options of a session with which the server asks a silent client whether it is there."""
    return " ".join(f"-c tcp_keepalives_{key}={value}" for key, value in ALIVE.items())


@contextmanager
def shared_locks(holder: str, waiting: Waiting) -> Iterator[SharedLocks | None]:
    """SharedLocks where COMPRESSION_PG names a server, None on one machine."""
    if not os.environ.get(VARIABLE):
        yield None
        return
    with SharedLocks(holder, waiting) as locks:
        yield locks


def lock_number(name: str) -> int:
    """The key of a lock: the first 64 bits of its name's SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
