"""How many processes of a run work at once, how they start and with how many threads.

On CUDA a step has a fresh process, so that its memory returns, and there are as many at once as devices. On a CPU
steps are forked from a server that has imported torch already, and two work at once: on 2 cores two processes of one
thread each trained SmolLM2-135M at 166 to 189 tokens/s in sum, one process of two threads at 136 to 145, because a
training step has many operations that are too small to share out.
"""

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal

from compression_assets.errors import StudyError

AT_ONCE_ON_A_CPU = 2
VARIABLE = "COMPRESSION_WORKERS"
PRELOADED = "compression_assets.graph.preload"
WSL_DRIVER = Path("/usr/lib/wsl/lib/libcuda.so.1")
"""Under Windows' Linux there is no /dev/nvidia0; a device there counts as one."""


@dataclass(frozen=True)
class Workers:
    """start: how a step's process comes to be ("in_process": it has none of its own). threads: of torch in each."""

    start: Literal["in_process", "forkserver", "spawn"]
    count: int
    threads: int


def workers() -> Workers:
    """The workers of a run on this machine; COMPRESSION_WORKERS overrides their number, 1 on a CPU means no processes.

    Raises StudyError when that is not a whole number of at least 1.
    """
    cores, devices = len(os.sched_getaffinity(0)), cuda_devices()
    count = _asked() or (devices or min(AT_ONCE_ON_A_CPU, cores))
    threads = max(1, cores // count)
    if devices:
        return Workers("spawn", count, threads)
    return Workers("in_process" if count == 1 else "forkserver", count, threads)


def cuda_devices() -> int:
    """Visible NVIDIA devices, told without importing torch (which takes seconds)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = len(list(Path("/dev").glob("nvidia[0-9]*"))) or int(WSL_DRIVER.exists())
    if visible is None:
        return present
    return min(present, len([name for name in visible.split(",") if name.strip()]))


def use_threads() -> None:
    """Set the threads of numerical libraries, before they are imported; what the user has set already stays."""
    os.environ.setdefault("OMP_NUM_THREADS", str(workers().threads))


def has_a_process_of_its_own() -> bool:
    """Whether this process was made for one step of a run, and ends with it."""
    return multiprocessing.parent_process() is not None and workers().start != "in_process"


def die_with_the_run() -> None:
    """Let this process be killed when the process of its run is gone.

    A step that outlived a killed run would work on beside the next one, on the same model.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and not any(thread.name == _watch.__name__ for thread in threading.enumerate()):
        threading.Thread(target=_watch, name=_watch.__name__, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _asked() -> int | None:
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise StudyError(f"{VARIABLE} is {text!r}; set it to a whole number of at least 1, or unset it")
    return int(text)
