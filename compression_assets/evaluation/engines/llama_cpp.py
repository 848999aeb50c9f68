"""llama.cpp itself, as the wheel xllamacpp brings it: how it tokenises texts, what it predicts and how fast.

It runs in a process of its own (`llama_process`), since it ends its process where a file is not what it expects.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines import llama_process
from compression_assets.evaluation.engines.served import WORK, Served, Timed
from compression_assets.evaluation.engines.settings import LLAMA_CPP

if TYPE_CHECKING:
    import numpy as np

    from compression_assets.text.datasets import TokenDataset

TIMEOUT = 1800.0
"""Seconds for loading a file and one forward pass. A measurement takes as long as its data: it has no limit."""
INSTALL = "pip install 'compression-assets[llama-cpp]'"


def available() -> bool:
    """Whether llama.cpp is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def require() -> None:
    """StudyError where llama.cpp is not installed."""
    if not available():
        raise StudyError(f"llama.cpp is not installed: {INSTALL}")


def ask(file: Path, texts: Sequence[str], ids: Sequence[int]) -> tuple[list[list[int]], "np.ndarray"]:
    """(token ids of each text, logits of shape [len(ids), vocabulary]) of a GGUF file.

    Special tokens written in a text count as such; none are added. Raises StudyError with llama.cpp's last words when
    it cannot load the file.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        logits = Path(folder) / "logits.npy"
        question = {"texts": list(texts), "ids": list(ids), "logits": str(logits)}
        tokens = _asked(file, question, TIMEOUT)
        return tokens, np.load(logits)


def measure(file: Path, dataset: "TokenDataset") -> Served:
    """Run a GGUF file on the tokens of a data set. Raises StudyError as `ask` does."""
    threads = len(os.sched_getaffinity(0))
    question = {
        "rows": [(list(row.input_ids), list(row.content)) for row in dataset.rows],
        "work": [asdict(work) for work in WORK],
        "threads": threads,
    }
    found = _asked(file, question)
    return Served(
        ids=tuple(row.id for row in dataset.rows),
        nll=tuple(found["nll"]),
        tokens=tuple(sum(row.content[1:]) for row in dataset.rows),
        timed=tuple(
            Timed(work, tuple(one["prompt"]), tuple(one["generation"]))
            for work, one in zip(WORK, found["timed"], strict=True)
        ),
        resident=found["resident"],
        engine=LLAMA_CPP,
        version=f"xllamacpp {metadata.version('xllamacpp')}",
        device="cpu",
        threads=threads,
    )


def _asked(file: Path, question: dict[str, Any], timeout: float | None = None) -> Any:
    try:
        done = subprocess.run(
            [sys.executable, "-m", llama_process.__name__],
            input=json.dumps({"file": str(file), **question}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StudyError(f"llama.cpp did not answer about {file} within {timeout:,.0f} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise StudyError(f"llama.cpp cannot use {file}: {' / '.join(said[-2:])[:300] or 'it said nothing'}")
    return json.loads(done.stdout)
