"""The device a step runs on: leased for its duration, measured, and cleaned up after. No models in here."""

import fcntl
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import dagster as dg

from compression_assets.errors import StudyError
from compression_assets.workers import cuda_devices


@dataclass
class Lease:
    """A device for one step, with its seconds and peak memory (device memory on CUDA, else resident memory)."""

    device: str
    started: float

    def so_far(self) -> dict[str, str | float | int]:
        """device, seconds and peak_memory_bytes of the step until now."""
        return {
            "device": self.device,
            "seconds": time.monotonic() - self.started,
            "peak_memory_bytes": _peak(self.device),
        }


class Gpu(dg.ConfigurableResource):
    """Hands out one device at a time to one step at a time; on a machine without CUDA, the CPU.

    device: "auto" (the first free CUDA device, else the CPU), "cpu", or "cuda:N".
    """

    device: str = "auto"

    @contextmanager
    def lease(self, holder: str) -> Iterator[Lease]:
        """Lease a device for `holder` (an asset's name). CUDA leases exclude each other across processes.

        Raises StudyError when a CUDA device is asked for and none is there.
        """
        with _device(self.device, holder) as device:
            _reset_peak(device)
            try:
                yield Lease(device, time.monotonic())
            finally:
                _free(device)


@contextmanager
def _device(wanted: str, holder: str) -> Iterator[str]:
    if wanted == "cpu" or (wanted == "auto" and not cuda_devices()):
        yield "cpu"
        return
    import torch

    if not torch.cuda.is_available():
        if wanted == "auto":
            yield "cpu"
            return
        raise StudyError(
            f"{holder} asks for {wanted}, but torch finds no CUDA device; set the gpu resource to 'auto'"
        )
    indices = range(torch.cuda.device_count()) if wanted == "auto" else [int(wanted.partition(":")[2] or 0)]
    with _lock_one(list(indices), holder) as index:
        yield f"cuda:{index}"


@contextmanager
def _lock_one(indices: list[int], holder: str) -> Iterator[int]:
    """A file lock on one of the devices; the kernel drops it when the process dies."""
    while True:
        for index in indices:
            if (handle := _try_lock(index)) is not None:
                with handle:
                    handle.seek(0)
                    handle.truncate()
                    handle.write(f"{holder} (process {os.getpid()})\n")
                    handle.flush()
                    yield index
                return
        time.sleep(1.0)


def _try_lock(index: int) -> IO[str] | None:
    file = Path(tempfile.gettempdir()) / f"compression_assets_cuda_{index}.lock"
    handle = file.open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    return handle


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux: writing 5 resets the high-water mark of resident memory, so that each step has its own.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _free(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
