"""How processes that run steps behave: set before torch and transformers are imported. No settings of a study."""

import ctypes
import logging
import os
import platform

from compression_assets.machine.workers import use_threads


def prepare_process() -> None:
    """Environment and log levels of a process that runs steps; what the user has set already stays.

    OMP_WAIT_POLICY: idle OpenMP threads sleep rather than spin. Alone on 2 cores a training step is as fast either
    way; beside another busy process it ran 2.5 times faster (148 against 58 tokens/s, SmolLM2-135M).
    Memory is kept between operations and taken in large pages (`_keep_memory`).
    CUBLAS_WORKSPACE_CONFIG: without it cuBLAS has no deterministic kernels.
    TQDM_DISABLE: progress bars grow without end in captured logs; steps report their own progress.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TQDM_DISABLE", "1")
    _keep_memory()
    use_threads()
    # It warns that optional kernels from a model hub are missing, at every import.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _keep_memory() -> None:
    """Let the process keep what it frees, and use large pages: a step frees and takes gigabytes again and again.

    By default glibc gives everything above 32 MiB and every free end of its heap back to the kernel, which clears it
    page by page when it is needed again: a tenth of a training step of SmolLM2-135M on rows of 150 tokens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for large pages from 2 MiB on
    if platform.libc_ver()[0] == "glibc" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        trim_threshold, mmap_threshold = -1, -3
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 1 << 25)
