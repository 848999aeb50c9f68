"""Processes of several hosts: which of them are alive, and the end of one that was cut off from the others.

A session of PostgreSQL ends with its process, or seconds after its host was cut off.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.machine.shared_locks import connect, lock_number

BEAT = 2.0
"""Seconds between two signs of life."""

CUT_OFF = 20.0
"""Seconds without PostgreSQL after which a step ends itself; Ray gives a silent host up after about 50."""


@contextmanager
def alive(name: str) -> Iterator[None]:
    """Let every host see that whoever bears this name is at work, until the end of this context."""
    held = _Session(name)
    held.beat()
    stop = threading.Event()
    thread = threading.Thread(target=_keep, args=(held, stop), name=f"alive {name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        held.close()


def is_alive(name: str) -> bool:
    """Whether a process on some host is at work under this name. Raises StudyError without PostgreSQL."""
    with closing(connect("compression")) as session, session.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (lock_number(name),))
        return not cursor.fetchone()[0]


def die_when_cut_off() -> None:
    """Let this process be killed once it has not reached PostgreSQL for CUT_OFF seconds.

    By then its step is begun again on another host, for whose word its own would be taken.
    """
    if not any(thread.name == _watch.__name__ for thread in threading.enumerate()):
        threading.Thread(target=_watch, name=_watch.__name__, daemon=True).start()


class _Session:
    """An advisory lock, taken again when its connection was lost, as by a restart of PostgreSQL."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._session: Any = None

    def beat(self) -> None:
        """Raises StudyError or psycopg2.Error when there is no connection."""
        self._session = self._session or connect(self._name)
        with self._session.cursor() as cursor:
            cursor.execute(
                "SELECT pg_try_advisory_lock(%s) WHERE NOT EXISTS "
                "(SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
                (lock_number(self._name),),
            )

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None


def _keep(held: _Session, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        _beats(held)


def _watch() -> None:
    session, reached = _Session(f"step {os.getpid()}"), time.monotonic()
    while time.monotonic() - reached < CUT_OFF:
        if _beats(session):
            reached = time.monotonic()
        time.sleep(BEAT)
    os.kill(os.getpid(), signal.SIGKILL)


def _beats(session: _Session) -> bool:
    import psycopg2

    try:
        session.beat()
    except (StudyError, psycopg2.Error):
        session.close()
        return False
    return True
