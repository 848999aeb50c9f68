"""Run every benchmark in a process of its own and write RESULTS.md from what they print."""

import subprocess
import sys
from pathlib import Path

from benchmarks.common import machine

HERE = Path(__file__).parent
NOT_BENCHMARKS = {"__init__", "common", "run"}


def main() -> int:
    """Exit code: how many benchmarks failed or missed a target. Names as arguments run only those, without writing."""
    found = sorted(file.stem for file in HERE.glob("*.py") if file.stem not in NOT_BENCHMARKS)
    sections, failed = [], 0
    for name in sys.argv[1:] or found:
        print(f"benchmarks.{name}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True, check=False
        )
        failed += done.returncode != 0
        note = "" if done.returncode == 0 else f"\n\n(`benchmarks/{name}.py` ended with {done.returncode}.)"
        sections.append(done.stdout.strip() + note)
        print(sections[-1], flush=True)
    if not sys.argv[1:]:
        text = f"# Results\n\nWritten by `make bench`. {machine()}\n\n" + "\n\n".join(sections) + "\n"
        (HERE / "RESULTS.md").write_text(text)
    return failed


if __name__ == "__main__":
    sys.exit(main())
