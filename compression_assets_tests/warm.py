"""`compression` in a process that has imported everything already: most commands take less time than their imports.

Each has a process of its own, forked from a server that has imported libraries and nothing of a study.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["compression_assets_tests.warm_imports"])


def compression(arguments: tuple[str, ...], environment: Mapping[str, str], cwd: Path) -> tuple[int, str]:
    """Exit code of a command, and what it wrote to the terminal."""
    with tempfile.NamedTemporaryFile("r") as output:
        process = PROCESSES.Process(target=_command, args=(arguments, dict(environment), cwd, output.name))
        process.start()
        process.join(600)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"compression {' '.join(arguments)} takes longer than ten minutes")
        return process.exitcode, output.read()


def _command(arguments: tuple[str, ...], environment: dict[str, str], cwd: Path, output: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    with Path(output).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["compression", *arguments]
    from compression_assets import cli

    cli.main()
