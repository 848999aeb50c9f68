"""Dagster's history in SQLite files, with connections that stay open while a run goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


@contextmanager
def connections_kept(instance: dg.DagsterInstance) -> Iterator[None]:
    """Let an instance's event log use one engine a file while the block runs; nothing for one that is not in SQLite.

    By itself Dagster makes an engine for every event that it stores or looks up: it connects anew, compiles the same
    SQL anew and, as the last one to close the file, writes its log back. That took 6 ms of processor time an event,
    against 2 with engines that are kept, and was most of a run that has nothing to do.
    """
    from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
    from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
    from sqlalchemy import create_engine

    storage = instance.event_log_storage
    if not isinstance(storage, SqliteEventLogStorage):
        yield
        return
    engines: dict[str, Engine] = {}
    connect_anew = storage._connect

    @contextmanager
    def connect(shard: str) -> "Iterator[Connection]":
        if shard not in storage._initialized_dbs:
            with connect_anew(shard):  # makes the file and its tables
                pass
        with storage._db_lock:
            if shard not in engines:
                engines[shard] = create_engine(
                    storage.conn_string_for_shard(shard),
                    connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS},
                )
            with engines[shard].begin() as connection:
                yield connection

    vars(storage)["_connect"] = connect
    try:
        yield
    finally:
        del vars(storage)["_connect"]
        for engine in engines.values():
            engine.dispose()
