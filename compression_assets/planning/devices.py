"""What a device can do: memory, arithmetic, and the share of it that training reaches. No study in here."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.strict import near_match

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """kind: "cpu" or "cuda". memory: bytes. flops: sustained FLOP/s in bfloat16 matrix products, all of it together.

    training, scoring: share of `flops` that steps of that kind reach. disk: bytes a second when a model is written and
    hashed. why: where the figures come from.
    """

    name: str
    kind: str
    memory: int
    flops: float
    training: float
    scoring: float
    disk: float
    why: str


def _card(
    name: str, gib: int, tera: float, training: float = 0.40, scoring: float = 0.30, how: str = "assumed"
) -> Device:
    shares = f"{training:.0%} of it in training and {scoring:.0%} in scoring, {how}"
    why = f"{tera:g} TFLOP/s of dense bfloat16 (data sheet); {shares}"
    return Device(name, "cuda", gib * GIB, tera * 1e12, training, scoring, 1e9, why)


CARDS = {
    "a6000": _card("NVIDIA RTX A6000", 48, 154.8),
    "a100": _card("NVIDIA A100 80 GB", 80, 312.0),
    # Qwen2.5-3B and its teacher in 8 bit (benchmarks/results/gpu.md).
    "h100": _card("NVIDIA H100 SXM 80 GB", 80, 989.0, training=0.25, scoring=0.20, how="measured"),
}
CPU = "cpu"
NAMES = (*CARDS, CPU)
DEFAULT_CPU_FLOPS = 340e9
"""Two cores with bfloat16 instructions."""


def device(name: str, measure: bool = False) -> Device:
    """A device by its name. measure: time this machine's CPU for a moment (it imports torch) instead of a default.

    Raises StudyError for a name that is not listed.
    """
    lower = name.lower()
    if lower in CARDS:
        return CARDS[lower]
    if lower == CPU:
        return this_cpu(measure)
    raise StudyError(f"no figures are known for the device {name!r}: {near_match(name, NAMES)}")


def this_card(about: Path = Path("/proc/driver/nvidia/gpus")) -> Device | None:
    """The first NVIDIA device of this machine if its figures are known, told without importing torch."""
    for file in sorted(about.glob("*/information")):
        name = re.search(r"^Model:\s*(.*)$", file.read_text(), re.MULTILINE)
        return next(
            (card for short, card in CARDS.items() if name and short.upper() in name[1].upper()), None
        )
    return None


def this_cpu(measure: bool = False) -> Device:
    """This machine. The shares were measured with SmolLM2-135M on 2 cores: small matrices, memory-bound softmax."""
    cores = len(os.sched_getaffinity(0))
    flops = matmul_rate() if measure else DEFAULT_CPU_FLOPS
    how = "measured" if measure else "assumed"
    why = f"{flops / 1e9:,.0f} GFLOP/s of matrix products ({how}, {cores} cores)"
    return Device("this CPU", "cpu", _memory(), flops, 0.50, 0.50, 150e6, why)


def matmul_rate(seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOP/s of a matrix product of a small language model's shape, in the format that this CPU computes with.

    clock: what counts as a second; by a processor's, other programs on the machine change little.
    """
    import torch

    from compression_assets.machine.precision import compute_dtype

    dtype = compute_dtype("cpu")
    rows, inner, columns = 512, 576, 1536
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    best = 0.0
    deadline = clock() + seconds
    while clock() < deadline:
        started = clock()
        for _ in range(8):
            torch.nn.functional.linear(a, b)
        best = max(best, 8 * 2.0 * rows * inner * columns / (clock() - started))
    return best


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
