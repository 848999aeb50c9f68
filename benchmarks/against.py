"""What a change costs or saves: this tree against an earlier commit, in turn, as processor seconds of whole commands.

`python -m benchmarks.against REVISION` compares with that one; without it, with the commit before.
"""

import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from statistics import median

from benchmarks.common import ratios, spread, table

ROUNDS = 2
STUDY = "smoke"
HERE = Path(__file__).resolve().parents[1]
RUN = ("-m", "compression_assets.cli", "run", "--study", STUDY)
COMMANDS = {
    "import dagster": ("-c", "import dagster"),
    "import of the definitions": ("-c", "import compression_assets.graph.definitions"),
    f"run of {STUDY}, from nothing": RUN,
    "the same, with nothing to do": RUN,
}
"""Arguments of Python, run in this order in the storage that the round before it began."""


def main() -> None:
    """Print seconds of each command in both trees, and the ratio within a round."""
    revision = _git("rev-parse", "--short", *(sys.argv[1:] or ["HEAD~1"])).decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        with tarfile.open(fileobj=BytesIO(_git("archive", "--format=tar", revision))) as archive:
            archive.extractall(earlier, filter="data")
        trees = {revision: earlier, "now": HERE}
        seconds: dict[str, dict[str, list[float]]] = {name: {tree: [] for tree in trees} for name in COMMANDS}
        for round_ in range(ROUNDS + 1):
            for tree, place in trees.items():
                for name, arguments in COMMANDS.items():
                    if round_ == 0 and "import" not in name:  # the first round only writes the bytecode
                        continue
                    spent = _seconds(arguments, place, Path(folder) / f"{tree}-{round_}")
                    if round_:
                        seconds[name][tree].append(spent)
    print(f"## This commit against {revision}\n")
    print(
        f"Processor seconds of whole commands, {ROUNDS} rounds in which the two trees take turns; COMPRESSION_WORKERS=1"
        " and one thread, so that a command is one process. Minimum / median / maximum.\n"
    )
    rows = [
        (name, spread(of[revision]), spread(of["now"]), spread(ratios(of["now"], of[revision])))
        for name, of in seconds.items()
    ]
    print(table(("", revision, "now", "now / earlier"), rows))
    dagster, definitions = (seconds[name]["now"] for name in list(COMMANDS)[:2])
    print(f"\nImporting the definitions takes {median(ratios(definitions, dagster)):.2f} × `import dagster`.")


def _seconds(arguments: tuple[str, ...], tree: Path, storage: Path) -> float:
    """User and system time of Python with these arguments. Raises CalledProcessError when it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {
        "PYTHONPATH": str(tree),
        "COMPRESSION_STORAGE": str(storage),
        "COMPRESSION_STUDY": STUDY,
        "COMPRESSION_WORKERS": "1",
        "OMP_NUM_THREADS": "1",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, check=True).stdout


if __name__ == "__main__":
    main()
