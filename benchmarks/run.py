"""Run each benchmark of one machine in a process of its own and write RESULTS.md from what they print.

`python -m benchmarks.run NAME ...` runs some of them and keeps the others' last results.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.common import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NAMES = ("against", "generation", "head_loss", "kd_speed", "scaling", "tables", "teacher_logits")
"""What needs the demo's models and no more; others are run by themselves (README.md)."""


def main() -> int:
    """Exit code: how many benchmarks failed or missed a target."""
    failed = 0
    for name in sys.argv[1:] or NAMES:
        print(f"benchmarks.{name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        failed += done.returncode != 0
        keep(name, done.stdout, done.returncode)
    write()
    return failed


def keep(name: str, printed: str, code: int) -> None:
    """Write what a benchmark printed to results/, with the machine."""
    note = "" if code == 0 else f"\n\nEnded with exit code {code}."
    (RESULTS / f"{name}.md").write_text(f"{printed.strip()}{note}\n\n{machine()}\n")


def write() -> None:
    """RESULTS.md from results/."""
    texts = [file.read_text().strip() for file in sorted(RESULTS.glob("*.md"))]
    sections = [text if text.startswith("## ") else f"#{text}" for text in texts]
    (HERE / "RESULTS.md").write_text(
        "# Results\n\nWritten by `make bench`.\n\n" + "\n\n".join(sections) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
