"""What every benchmark needs: the machine in words, the demo's files, taking turns, tables."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "bitsandbytes", "safetensors")


def one_thread() -> None:
    """Compute as a step of a study does on a CPU: one thread, memory kept. Before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from compression_assets.machine.runtime import prepare_process

    prepare_process()


def demo() -> Path:
    """Storage of the demo study. SystemExit when it has no teacher logits yet."""
    directory = Path(os.environ.get("COMPRESSION_STORAGE", "storage")) / "demo"
    if not (directory / "logits" / "teacher_logits" / "logits.json").is_file():
        raise SystemExit(
            f"{directory} has no teacher logits: run make demo, or point COMPRESSION_STORAGE to it."
        )
    return directory


def machine() -> str:
    """Processor, cores, memory, kernel, date and versions, as Markdown."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
    )
    names = {name.strip(): value.strip() for name, value in fields.items()}
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    flags = [
        name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in names["flags"].split()
    ]
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{names['model name']} (family {names.get('cpu family')}, model {names.get('model')}; {', '.join(flags)}), "
        f"{len(os.sched_getaffinity(0))} cores, {kilobytes / 2**20:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {packages}. {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    )


def turns(
    functions: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of each function in each round; one round before is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            started = clock()
            function()
            if round_:
                seconds[name].append(clock() - started)
    return seconds


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Minimum / median / maximum."""
    return " / ".join(
        f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values))
    )


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios within rounds."""
    return [one / other for one, other in zip(above, below, strict=True)]


def matmul_peak() -> float:
    """bfloat16 FLOP per processor second of this thread on square matrices: the best of some tries."""
    import torch

    size = 2048
    left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    out = left @ right
    seconds = turns({"mm": lambda: [torch.mm(left, right, out=out) for _ in range(5)]}, 5)["mm"]
    return 5 * 2 * size**3 / min(seconds)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


class Targets:
    """Collects what was aimed at and what came out; `finish` prints them and ends the process accordingly."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []

    def add(self, what: str, found: str, met: bool) -> None:
        """One target, the figure that it is judged by, and whether that is good enough."""
        self.rows.append((what, found, "met" if met else "**missed**"))

    def finish(self) -> None:
        """Print the table; SystemExit(1) when a target was missed."""
        print("\n" + table(("target", "found", ""), self.rows), flush=True)
        if any("missed" in row[2] for row in self.rows):
            raise SystemExit(1)
