"""The device a step runs on: leased for its duration, with enough memory, measured, and cleaned up after.

What devices there are is in `devices`, the locks are in `locks`.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from compression_assets.errors import StudyError
from compression_assets.machine.devices import (
    CudaDevice,
    free_bytes,
    give_back,
    machine_name,
    peak_bytes,
    reset_peak,
    resident_bytes,
    visible_devices,
)
from compression_assets.machine.locks import SAY_EVERY, Waiting, holder_of, locked, try_lock
from compression_assets.machine.workers import cuda_devices

CHECK_VARIABLE = "COMPRESSION_MEMORY_CHECK"
POLL_SECONDS = 0.5
LETTING_GO = 20.0
"""Seconds that a process may take to end, its lock already free."""
GIB = 2**30

LOCKS = Path("/tmp/compression_assets_locks")
"""Directory of the locks; the same for all users and studies of a machine, since its devices are."""

Memory = Callable[[str], int | None]
"""Peak bytes that a step is expected to take on a device ("cpu" or "cuda:N"); None: not known."""


@dataclass
class Lease:
    """A device for one step, with its seconds and peak memory (device memory on CUDA, else resident memory).

    devices: all that the step has, `device` first. expected_bytes: what the step was expected to take of each.
    waited: seconds until they were free.
    """

    device: str
    started: float
    devices: tuple[str, ...] = ()
    expected_bytes: int | None = None
    waited: float = 0.0

    def so_far(self) -> dict[str, str | float | int]:
        """device, seconds and peak_memory_bytes of the step until now, of several devices the largest."""
        return {
            "device": self.device,
            "seconds": time.monotonic() - self.started,
            "peak_memory_bytes": max(peak_bytes(device) for device in self.devices or (self.device,)),
        }

    def about(self) -> dict[str, str | float | int]:
        """What else is worth recording: the machine, the compute format, the memory expected, the time waited."""
        found: dict[str, str | float | int] = {
            "machine": machine_name(self.device),
            "waited_seconds": round(self.waited, 1),
        }
        if len(self.devices) > 1:
            found["gpus"] = len(self.devices)
        if self.expected_bytes is not None:
            found["expected_memory_mib"] = round(self.expected_bytes / 2**20)
        if "torch" in sys.modules:  # a step that never computed has no format
            from compression_assets.machine.precision import compute_dtype

            found["compute_dtype"] = str(compute_dtype(self.device)).removeprefix("torch.")
        return found


@contextmanager
def lease(
    holder: str,
    memory: Memory = lambda device: None,
    waiting: Waiting | None = None,
    uses_device: bool = True,
    *,
    device: str = "auto",
    gpus: int = 1,
    locks: Path = LOCKS,
) -> Iterator[Lease]:
    """Lease a device for `holder` (an asset's name). CUDA leases exclude each other across processes.

    memory: how much the step is expected to take there, of each where it has several. waiting: told who holds what
    is waited for. uses_device: False for a step that has no use for a CUDA device: it gets the CPU. device:
    "auto" (the first free CUDA device, else the CPU), "cpu", or "cuda:N", N as in CUDA_VISIBLE_DEVICES. gpus:
    how many CUDA devices, where there are any. locks: directory of the locks. Raises StudyError when more CUDA
    devices are asked for than are there, and before any work when the memory cannot suffice (unless
    COMPRESSION_MEMORY_CHECK=off).
    """
    _make_shared(locks)
    asked = time.monotonic()
    devices = _candidates(device, holder, gpus) if uses_device else []
    tell = waiting or _teller(holder)
    take = (
        _cuda(devices, locks, holder, memory, tell, gpus) if devices else _memory(locks, holder, memory, tell)
    )
    with take as (names, expected), computing_on(name := names[0]):
        for one in names:
            reset_peak(one)
        held = resident_bytes()
        started = time.monotonic()
        try:
            yield Lease(name, started, names, expected, started - asked)
        finally:
            give_back(name, held)


def _candidates(device: str, holder: str, gpus: int) -> list[CudaDevice]:
    """CUDA devices that would do; none means the CPU."""
    if device == "cpu" or (device == "auto" and not cuda_devices()):
        return []
    found = visible_devices()
    if device == "auto":
        if found and len(found) < gpus:
            raise StudyError(
                f"{holder} needs {gpus} CUDA devices, but only {len(found)} are visible; set training.gpus (or "
                "teacher_gpus) in the study to what the machine has, or see CUDA_VISIBLE_DEVICES"
            )
        return found
    if gpus > 1:
        raise StudyError(
            f"{holder} needs {gpus} CUDA devices, but the gpu resource gives it {device} alone; set that to 'auto'"
        )
    wanted = int(device.partition(":")[2] or 0)
    if not found:
        raise StudyError(
            f"{holder} asks for {device}, but torch finds no CUDA device; set the gpu resource to 'auto'"
        )
    if wanted >= len(found):
        raise StudyError(
            f"{holder} asks for {device}, but only {len(found)} CUDA devices are visible; "
            "set the gpu resource to 'auto' or see CUDA_VISIBLE_DEVICES"
        )
    return [found[wanted]]


class Reservation(NamedTuple):
    """Memory that a living process was promised on the CPU."""

    holder: str
    pid: int
    bytes: int


@contextmanager
def _cuda(
    devices: list[CudaDevice], folder: Path, holder: str, memory: Memory, waiting: Waiting, gpus: int
) -> Iterator[tuple[tuple[str, ...], int | None]]:
    """The first devices that nobody holds and that have the memory, locked."""
    need = memory("cuda") if _checked() else None
    # The largest; of several the least of them.
    largest = sorted(devices, key=lambda device: device.total_bytes)[-gpus]
    if need is not None and need > largest.total_bytes:
        raise _too_small(
            holder, need, largest.total_bytes, f"cuda:{largest.index} ({largest.name})", "in all"
        )
    fitting = [device for device in devices if need is None or device.total_bytes >= need]
    with ExitStack() as held:
        # A step keeps what it has while it waits for more; two that did would wait for each other.
        alone = locked(folder / "several.lock", holder, waiting) if gpus > 1 else nullcontext()
        with alone:
            names = _first_free(fitting, folder, holder, waiting, need, gpus, held)
        yield tuple(names), need


def _first_free(
    devices: list[CudaDevice],
    folder: Path,
    holder: str,
    waiting: Waiting,
    need: int | None,
    gpus: int,
    held: ExitStack,
) -> list[str]:
    """Names of `gpus` devices, whose locks `held` keeps.

    StudyError when programs of others leave too little memory on all but fewer of them, whatever steps hold; not at
    once, for a step that failed holds its memory until its process is gone.
    """
    said = -SAY_EVERY
    short_since: float | None = None
    names: list[str] = []
    while True:
        short = {}
        for device in devices:
            name = f"cuda:{device.index}"
            if name not in names and (handle := try_lock(lock_of(folder, device), holder)):
                if need is None or need <= (free := free_bytes(name)):
                    held.enter_context(handle)
                    names.append(name)
                    if len(names) == gpus:
                        return names
                    continue
                handle.close()
                short[f"{name} ({device.name})"] = free
        if need is None or len(short) + gpus <= len(devices):
            short_since = None
        elif short_since is None:
            short_since = time.monotonic()
        elif time.monotonic() - short_since >= LETTING_GO:
            most = max(short, key=lambda name: short[name])
            raise _too_small(holder, need, short[most], most, "free")
        if time.monotonic() - said >= SAY_EVERY:
            said = time.monotonic()
            holders = (
                f"cuda:{device.index}, held by {holder_of(lock_of(folder, device))}"
                for device in devices
                if f"cuda:{device.index}" not in names
            )
            waiting(", or for ".join(holders))
        time.sleep(POLL_SECONDS)


def lock_of(folder: Path, device: CudaDevice) -> Path:
    """The lock's file; its name is the device's own, whatever number it has in this process."""
    return folder / f"{device.identity.replace('/', '_')}.lock"


@contextmanager
def _memory(
    folder: Path, holder: str, memory: Memory, waiting: Waiting
) -> Iterator[tuple[tuple[str, ...], int | None]]:
    """The CPU, once the memory that the step needs is neither taken nor promised to another step."""
    need = memory("cpu")
    if need is None or not _checked():
        yield ("cpu",), need
        return
    own = folder / f"memory-{os.getpid()}.lease"
    said = -SAY_EVERY
    with ExitStack() as held:
        while (handle := _reserve(folder, own, holder, need)) is None:
            if time.monotonic() - said >= SAY_EVERY:
                said = time.monotonic()
                others = ", ".join(other.holder for other in _reservations(folder, own))
                waiting(f"{need / GIB:.1f} GiB of memory beside {others}")
            time.sleep(POLL_SECONDS)
        held.callback(own.unlink, missing_ok=True)
        held.enter_context(handle)
        yield ("cpu",), need


def _reserve(folder: Path, own: Path, holder: str, need: int) -> IO[str] | None:
    """The reservation, or None while others hold what is missing. StudyError when it would not help to wait."""
    with locked(folder / "memory.lock", holder, lambda text: None):
        others = _reservations(folder, own)
        promised = sum(max(0, other.bytes - resident_bytes(other.pid)) for other in others)
        free = free_bytes("cpu") + resident_bytes()
        if need <= free - promised:
            handle = try_lock(own, holder)
            assert handle is not None, f"{own} is held by this very process"
            handle.write(f"{need}\n")
            handle.flush()
            return handle
        if not others:
            raise _too_small(holder, need, free, "this machine", "free")
        return None


def _reservations(folder: Path, own: Path) -> list[Reservation]:
    """Those of other processes that are alive; what a dead one left is removed."""
    found = []
    for file in folder.glob("memory-*.lease"):
        if file == own:
            continue
        try:
            if dead := try_lock(file, "nobody", shared=True):
                dead.close()
                file.unlink(missing_ok=True)
                continue
            holder, size = file.read_text().splitlines()
        except (OSError, ValueError):  # gone in the meantime, or another user's
            continue
        found.append(Reservation(holder, int(file.stem.partition("-")[2]), int(size)))
    return found


def _teller(holder: str) -> Waiting:
    return lambda what: logging.getLogger("compression_assets").info("%s waits for %s", holder, what)


def _too_small(holder: str, need: int, there: int, where: str, how: str) -> StudyError:
    return StudyError(
        f"{holder} is expected to take {need / GIB:.1f} GiB of memory, but {where} has {there / GIB:.1f} GiB {how}; "
        "lower batch_size in the study or take a larger machine, then run again (finished work is kept; "
        f"{CHECK_VARIABLE}=off tries all the same)"
    )


def _checked() -> bool:
    return os.environ.get(CHECK_VARIABLE, "on") != "off"


@contextmanager
def computing_on(device: str) -> Iterator[None]:
    """On CUDA: the current device, where float32 stays float32 and operations are deterministic if they can be.

    Not so the backward pass of fused attention: torch makes it deterministic only where all else has to be, and raises
    where something cannot. cuDNN's attention is off: it plans anew for every length, which is 1.1 ms of the processor
    a layer for every token that is generated (Qwen2.5-3B on an H100: half of the time of answering).
    """
    if device == "cpu":
        yield
        return
    import torch

    precision = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    by_cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Every new tensor would be filled with NaN first.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with torch.cuda.device(device), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*defaults to a non-deterministic algorithm")
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.backends.cuda.enable_cudnn_sdp(by_cudnn)


def _make_shared(folder: Path) -> None:
    """A directory in which every user of the machine may lock."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)
