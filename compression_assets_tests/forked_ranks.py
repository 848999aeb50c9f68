"""Ranks as forks of a test's own process, which has imported torch already. No test in here."""

import os
import signal
import socket
import traceback
from collections.abc import Sequence
from pathlib import Path

from compression_assets.store.reports import Report
from compression_assets.training.ranks import rank
from compression_assets.training.ranks.job import FAILURE, read_json


def run_forked(directory: Path, devices: Sequence[str], report: Report) -> dict[str, str]:
    """In place of `launch._run`: the same ranks without torchrun, whose processes take seconds to import torch."""
    (directory / FAILURE).unlink(missing_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    held_read, held_write = os.pipe()
    said_read, said_write = os.pipe()
    children = []
    for number in range(len(devices)):
        if (child := os.fork()) == 0:
            _be_rank(number, len(devices), port, directory, held_read, held_write, said_write)
        children.append(child)
    os.close(said_write)
    try:
        with os.fdopen(said_read) as lines:
            others = [line for line in lines if not _reported(line, report)]
    finally:
        os.close(held_read)
        os.close(held_write)
        codes = [_ended(child) for child in children]
    if not any(codes):
        return {}
    if failure := read_json(directory / FAILURE):
        return failure
    raise RuntimeError(f"a rank was lost: {codes}\n{''.join(others[-60:])}")


def _reported(line: str, report: Report) -> bool:
    if not line.startswith(rank.SAYS):
        return False
    report(*rank.said(line))
    return True


def _be_rank(
    number: int, world: int, port: int, directory: Path, held_read: int, held_write: int, said_write: int
) -> None:
    os.close(held_write)
    for source, target in ((held_read, 0), (said_write, 1), (said_write, 2)):
        os.dup2(source, target)
    os.close(said_write)
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    signal.alarm(300)
    import sys

    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    try:
        rank.main(directory)
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 (a fork must not go on as pytest)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
