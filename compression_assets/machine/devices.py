"""What this machine has to compute on: CUDA devices and their memory, and the memory that a process may still take.

Who may use a device is said by `gpu`.
"""

import ctypes
import gc
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from compression_assets.machine.workers import has_a_process_of_its_own

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
WORTH_RETURNING = 2**28
"""Bytes."""


@dataclass(frozen=True)
class CudaDevice:
    """A visible device. index: torch's, which CUDA_VISIBLE_DEVICES decides. identity: the same in every process."""

    index: int
    identity: str
    name: str
    total_bytes: int


def visible_devices() -> list[CudaDevice]:
    """The visible CUDA devices, none without CUDA. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found.append(CudaDevice(index, _identity(index, about), about.name, about.total_memory))
    return found


def free_bytes(device: str) -> int:
    """Bytes that this process can still take on a device ("cpu" or "cuda:N")."""
    if device == "cpu":
        return _free_memory()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def compute_bytes(device: str) -> int:
    """Bytes of a number that a device computes with: 2 (bfloat16), or 4 on a processor without bfloat16."""
    if device != "cpu":
        return 2
    flags = (PROC / "cpuinfo").read_text()
    return 2 if any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16")) else 4


def machine_name(device: str) -> str:
    """What a device is: "AMD EPYC, 2 cores" for "cpu", with the cores that this process may use; a GPU by its name."""
    if device != "cpu":
        import torch

        return str(torch.cuda.get_device_name(device))
    lines = (PROC / "cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {len(os.sched_getaffinity(0))} cores"


def resident_bytes(pid: int | str = "self") -> int:
    """Bytes of memory that a process holds now; 0 when it is gone."""
    return _status(pid, "VmRSS")


def reset_peak(device: str) -> None:
    """Start measuring the peak anew."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux: writing 5 resets the high-water mark of resident memory, so that each step has its own.
    try:
        (PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes(device: str) -> int:
    """Most bytes held since `reset_peak`: of tensors on CUDA, of the whole process on a CPU."""
    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return _status("self", "VmHWM")


def give_back(device: str, held: int) -> None:
    """Return memory that nothing refers to any more to the system. held: `resident_bytes` before it was taken.

    On a CPU only where it is worth the half second that looking at every object takes: not at the end of a process.
    """
    if device == "cpu" and (has_a_process_of_its_own() or resident_bytes() - held < WORTH_RETURNING):
        return
    gc.collect()
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
        return
    # glibc keeps what was freed: after a training step of SmolLM2-135M 3,095 MiB, and 585 MiB after this call.
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library, such as musl, keeps less
        return


def _identity(index: int, about: object) -> str:
    """The UUID where torch knows it, else the name under which CUDA_VISIBLE_DEVICES lists the device."""
    if uuid := getattr(about, "uuid", None):
        return str(uuid)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)


def _free_memory() -> int:
    free = [_memory_available(), *_below_cgroup_limits()]
    return max(0, min(free))


def _memory_available() -> int:
    lines = (PROC / "meminfo").read_text().splitlines()
    line = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def _below_cgroup_limits() -> list[int]:
    """What a container's limit leaves (cgroup version 2, then 1); page cache that can be dropped counts as free."""
    left = []
    for folder, limit, usage in (
        (CGROUP, "memory.max", "memory.current"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            allowed = (folder / limit).read_text().strip()
            if allowed == "max":
                continue
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            left.append(int(allowed) - int((folder / usage).read_text()) + int(stat.get("inactive_file", 0)))
        except (OSError, ValueError):
            continue
    return left


def _status(pid: int | str, name: str) -> int:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)
