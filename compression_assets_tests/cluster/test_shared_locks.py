"""Locks between hosts, on a real PostgreSQL: who holds one is told, and a lost holder gives it back."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.machine import shared_locks as locks
from compression_assets.machine.shared_locks import SharedLocks
from compression_assets.store.shared_artifacts import artifacts_of

pytestmark = pytest.mark.cluster

HOLDER = """
import sys, time
from pathlib import Path
from compression_assets.store.shared_artifacts import artifacts_of
store = artifacts_of(Path(sys.argv[1]))
with store.exclusive(store.root / "models" / "p", "final_kd"):
    print("held", flush=True)
    time.sleep(600)
"""


def silent(holder: str) -> None:
    raise AssertionError(f"nothing is to be waited for, and {holder} was")


def test_whoever_waits_is_told_who_and_where_until_the_holder_is_killed(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "a" / "study")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    waits: list[str] = []

    def waiting(holder: str) -> None:
        waits.append(holder)
        other.kill()

    # Another directory is another host: only the server knows of both.
    store = artifacts_of(tmp_path / "b" / "study")
    started = time.monotonic()
    with store.exclusive(store.root / "models" / "p", "model_p", waiting=waiting):
        assert waits == [f"final_kd, held on {socket.gethostname()[:16]} (process {other.pid})"]
    assert time.monotonic() - started < 30
    other.wait()
    other.stdout.close()


def test_readers_share_and_a_writer_waits_for_them(
    cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)
    with SharedLocks("model_p_kd", silent) as one, SharedLocks("model_p_q", silent) as two:
        one.take("models/p", shared=True)
        two.take("models/p", shared=True)

        class Enough(Exception):
            pass

        def stop(holders: str) -> None:
            assert "model_p_kd, held on" in holders and "model_p_q, held on" in holders
            raise Enough

        with SharedLocks("a rebuild of model_p", stop) as writer, pytest.raises(Enough):
            writer.take("models/p")
        two.take("models/q")
    with SharedLocks("model_p", silent) as writer:
        writer.take("models/p")
        writer.take("models/q")


def test_a_lost_session_takes_its_locks_again(
    cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg2

    with SharedLocks("model_p", silent) as held:
        held.take("first")
        with locks.connect("an administrator") as session, session.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", (held._session.info.backend_pid,))
        with pytest.raises(psycopg2.OperationalError):
            held._try("probe", False)
        held.take("second")
        with SharedLocks("another", silent) as other:
            assert not other._try("first", False) and not other._try("second", False)


def test_an_unusable_server_is_a_sentence_without_its_password(
    cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    for url in ("postgresql://me:hunter2@127.0.0.1:1/x", "postgresql:/me:hunter2@127.0.0.1"):
        monkeypatch.setenv("COMPRESSION_PG", url)
        with pytest.raises(StudyError, match="COMPRESSION_PG") as told:
            SharedLocks("model_p", silent)
        assert "hunter2" not in f"{told.value} {told.value.__cause__}"
