"""Connections to the Postgres that the machines of a study share, and processes that are told from them to be alive.

A session ends with its process, or seconds after its host was cut off; what it held is then free for others.
"""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from compression_assets.machine.cluster import POSTGRES

KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 11000}
"""Of the client's side: a connection is given up 11 s after the last answer."""

SERVER_SIDE = " ".join(
    f"-c tcp_{name}" for name in ("keepalives_idle=5", "keepalives_interval=2", "keepalives_count=3")
)
"""The same for the server, which frees a lost client's locks; options of a connection."""

CONNECT_SECONDS = 10
BEAT = 2.0
"""Seconds between two signs of life."""

CUT_OFF = 30.0
"""Seconds without Postgres after which a step ends itself; Ray gives a host up after about 50."""


def address() -> str:
    """COMPRESSION_PG; libpq takes a password that is not in it from PGPASSWORD or ~/.pgpass."""
    return os.environ[POSTGRES]


def connect(who: str) -> Any:
    """A psycopg2 connection that commits each statement. who: shown to those who wait for what it holds.

    Raises psycopg2.OperationalError when Postgres cannot be reached.
    """
    import psycopg2

    connection = psycopg2.connect(
        address(),
        application_name=who[:63],
        connect_timeout=CONNECT_SECONDS,
        options=SERVER_SIDE,
        **KEEPALIVE,
    )
    connection.autocommit = True
    return connection


def schema_of(study: str) -> str:
    """Where Postgres keeps what belongs to a study."""
    return f"compression_{study}"


def make_schema(study: str) -> None:
    """Make the schema of a study, with the table of its progress, where they are missing."""
    from psycopg2.errors import UniqueViolation

    schema = schema_of(study)
    table = f"{schema}.progress (id bigserial PRIMARY KEY, event text NOT NULL)"
    with closing(connect("compression")) as connection, connection.cursor() as cursor:
        # Of two processes that make the same at once, one is told that it is there.
        with suppress(UniqueViolation):
            cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        with suppress(UniqueViolation):
            cursor.execute(f"CREATE TABLE IF NOT EXISTS {table}")


@contextmanager
def alive(name: str) -> Iterator[None]:
    """Let every machine see that this process is at work on `name` (a run's id), until the end of this context."""
    held = _Session(name)
    held.take()
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
    """Whether some process on some machine is at work on `name`."""
    with closing(connect("compression")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (_number(name),))
        return not cursor.fetchone()[0]


def die_when_cut_off() -> None:
    """Let this process be killed once it has not reached Postgres for CUT_OFF seconds.

    Its step is by then begun again on another host. What this one reported later would be taken for the other's word.
    """
    if not any(thread.name == _watch.__name__ for thread in threading.enumerate()):
        threading.Thread(target=_watch, name=_watch.__name__, daemon=True).start()


class _Session:
    """An advisory lock that is taken again when its connection is lost, as after a restart of Postgres."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._connection: Any = None

    def take(self) -> None:
        self._connection = connect(self._name)
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (_number(self._name),))

    def beat(self) -> None:
        """Raises psycopg2.Error when the connection is lost."""
        if self._connection is None:
            self.take()
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _keep(held: _Session, stop: threading.Event) -> None:
    import psycopg2

    while not stop.wait(BEAT):
        try:
            held.beat()
        except psycopg2.Error:
            held.close()


def _watch() -> None:
    import psycopg2

    session, reached = _Session(f"step {os.getpid()}"), time.monotonic()
    while True:
        try:
            session.beat()
            reached = time.monotonic()
        except psycopg2.Error:
            session.close()
        if time.monotonic() - reached > CUT_OFF:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(BEAT)


def _number(name: str) -> int:
    """The key of an advisory lock, which is a signed number of 64 bits."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
