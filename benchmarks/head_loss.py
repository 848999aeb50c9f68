"""Peak memory and time of the chunked output layer and loss against the dense way, each in a process of its own."""

import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.common import Targets, one_thread, ratios, spread, table

TOKENS, WIDTH, VOCABULARY = 4_096, 896, 151_936
ROUNDS = 2
PEAK = "VmHWM:"


def main() -> None:
    """Print memory, seconds and ratios."""
    print("## Output layer and loss: chunked against dense\n")
    print(
        f"{TOKENS:,} tokens, width {WIDTH}, vocabulary {VOCABULARY:,}, cross-entropy, bfloat16 with the weight's "
        "gradient in float32. Dense: torch's linear layer, cross_entropy in float32 and backward. Peak: of resident "
        "memory, less what the process held with the inputs. Minimum / median / maximum of processes that take turns.\n"
    )
    runs: dict[str, list[tuple[float, float]]] = {"dense": [], "chunked": []}
    for _ in range(ROUNDS):
        for way, found in runs.items():
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.head_loss", way],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            seconds, peak = done.stdout.split()
            found.append((float(seconds), float(peak)))
    seconds, peaks = (
        {way: [pair[place] for pair in found] for way, found in runs.items()} for place in (0, 1)
    )
    memory, times = ratios(peaks["dense"], peaks["chunked"]), ratios(seconds["chunked"], seconds["dense"])
    rows = [(way, spread(peaks[way], 0), spread(seconds[way])) for way in runs]
    print(table(("way", "peak MiB", "processor s"), rows))
    targets = Targets()
    targets.add("peak memory at least 5 times below dense", spread(memory), median(memory) >= 5)
    targets.add("at most 1.2 times its time", spread(times), median(times) <= 1.2)
    targets.finish()


def measure(way: str) -> None:
    """Print processor seconds and peak MiB of one pass in this process."""
    one_thread()
    import torch

    from compression_assets.training.head_loss import LossWeights, head_loss

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).bfloat16()
    weight = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.05).bfloat16()
    ids = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    torch.mm(hidden[:64], weight[:64].T)  # libraries get their own memory before the count starts
    before = _resident()
    _reset_peak()
    started = time.process_time()
    if way == "dense":
        hidden.requires_grad_(), weight.requires_grad_()
        torch.nn.functional.cross_entropy((hidden @ weight.T).float(), ids).backward()
        assert weight.grad is not None
        weight.grad.float()
    else:
        gradient = torch.zeros(VOCABULARY, WIDTH)
        head_loss(hidden, weight, None, ids, LossWeights(TOKENS), d_weight=gradient)
    seconds = time.process_time() - started
    print(seconds, (_peak() - before) / 1024)


def _resident() -> int:
    """KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(PEAK))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        main()
