"""An ordinary run of the widened study, in a process of its own: definitions are read once in a process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.study.orderings import Ordering

INTERRUPTED = 130
WATCH_SECONDS = 1.0


def run_orderings(file: Path, orderings: Iterable[Ordering], parts: tuple[str, ...]) -> bool:
    """Build orderings of a study file and measure these parts of them, as `run_assets`."""
    return run_assets(file, [f"{part}_{ordering.key}" for ordering in orderings for part in parts])


def run_assets(file: Path, assets: Iterable[str]) -> bool:
    """Make assets of a study file and everything upstream; whether all of it succeeded.

    What is there is not made again. Raises KeyboardInterrupt when the run was interrupted.
    """
    wanted = [f'+key:"{asset}"' for asset in assets]
    environment = {**os.environ, "COMPRESSION_STUDY": str(file)}
    environment.pop("DAGSTER_HOME", None)
    command = [sys.executable, "-m", "compression_assets.search.run", " or ".join(wanted)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(
            signal.SIGINT
        )  # in a session of its own it hears no Ctrl-C, and would hear it twice
        process.wait()
        raise
    if code == INTERRUPTED or code < 0:
        raise KeyboardInterrupt
    return code == 0


def main() -> int:
    """Run the selection on the command line of the study in COMPRESSION_STUDY; its exit code."""
    from compression_assets.graph.run import run_study

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        return 0 if run_study(sys.argv[1]) else 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except StudyError as error:
        print(f"compression: {error}", file=sys.stderr)
        return 1


def _end_with(parent: int) -> None:
    """Interrupt this process once its search is gone, so that a killed search leaves nothing running."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
