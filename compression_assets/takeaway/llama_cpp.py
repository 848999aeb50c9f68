"""llama.cpp itself, as the wheel xllamacpp brings it: how it tokenises texts, what it predicts and how fast.

It runs in a process of its own, since it ends its process where a file is not what it expects. The wheel exports
llama.cpp's C functions (include/llama.h); its Python classes offer neither tokens nor logits.
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    import numpy as np

    from compression_assets.text.datasets import TokenDataset

TIMEOUT = 1800.0
"""Seconds for loading a file and its forward passes."""
AT_ONCE = 512
"""Tokens in a forward pass: llama.cpp's smallest batch."""
PROMPT, GENERATED = 256, 64
"""Tokens of what speeds are measured on."""


def available() -> bool:
    """Whether llama.cpp is installed: `pip install 'compression-assets[llama-cpp]'`."""
    return importlib.util.find_spec("xllamacpp") is not None


def ask(file: Path, texts: Sequence[str], ids: Sequence[int]) -> tuple[list[list[int]], "np.ndarray"]:
    """(token ids of each text, logits of shape [len(ids), vocabulary]) of a GGUF file.

    Special tokens written in a text count as such; none are added. Raises StudyError with llama.cpp's last words when
    it cannot load the file.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        logits = Path(folder) / "logits.npy"
        tokens = _asked(file, {"texts": list(texts), "ids": list(ids), "logits": str(logits)})
        return tokens, np.load(logits)


@dataclass(frozen=True)
class Served:
    """What a file does in llama.cpp.

    perplexity: of the content tokens of a data set. prompt_speed, generation_speed: tokens/s on the wall, of PROMPT
    tokens at once and of GENERATED one by one, each the median of three. first_token: seconds from the prompt to the
    first new token. resident: bytes of the process after that.
    """

    perplexity: float
    prompt_speed: float
    generation_speed: float
    first_token: float
    resident: int
    threads: int
    version: str


def measure(file: Path, dataset: "TokenDataset") -> Served:
    """Run a GGUF file on a data set. Raises StudyError as `ask` does."""
    threads = len(os.sched_getaffinity(0))
    rows = [(list(row.input_ids), list(row.content)) for row in dataset.rows]
    return Served(**_asked(file, {"rows": rows, "threads": threads}), version=metadata.version("xllamacpp"))


def _asked(file: Path, question: dict[str, Any]) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "compression_assets.takeaway.llama_cpp"],
        input=json.dumps({"file": str(file), **question}),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise StudyError(f"llama.cpp cannot use {file}: {' / '.join(said[-2:])[:300] or 'it said nothing'}")
    return json.loads(done.stdout)


class _Parameters(ctypes.Structure):
    """Settings by value. Longer than llama.cpp's own, whose fields differ from release to release and are not read."""

    _fields_ = [("bytes", ctypes.c_uint32 * 512)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class _Engine:
    """One loaded file."""

    def __init__(self, file: Path) -> None:
        spec = importlib.util.find_spec("xllamacpp")
        assert spec is not None and spec.submodule_search_locations
        library = next(Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so"))
        self._library = ctypes.CDLL(str(library))
        self._call("llama_backend_init", None)
        defaults = self._call("llama_model_default_params", _Parameters)
        self._model = self._call("llama_model_load_from_file", ctypes.c_void_p, str(file).encode(), defaults)
        if not self._model:
            raise SystemExit(1)
        self._vocabulary = ctypes.c_void_p(
            self._call("llama_model_get_vocab", ctypes.c_void_p, ctypes.c_void_p(self._model))
        )

    def tokens(self, text: str) -> list[int]:
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 16))()
        count = self._call(
            "llama_tokenize",
            ctypes.c_int32,
            self._vocabulary,
            raw,
            ctypes.c_int32(len(raw)),
            room,
            ctypes.c_int32(len(room)),
            ctypes.c_bool(False),
            ctypes.c_bool(True),
        )
        return list(room[:count])

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Of shape [len(ids), vocabulary]."""
        return self.context(len(ids)).decoded(ids, 0, [True] * len(ids))

    def context(self, tokens: int, threads: int | None = None) -> "_Context":
        return _Context(self, tokens, threads)

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = self._library[name]
        function.restype = result
        return function(*arguments)


class _Context:
    """Room for a text of so many tokens."""

    def __init__(self, engine: _Engine, tokens: int, threads: int | None) -> None:
        self._call = engine._call
        settings = self._call("llama_context_default_params", _Parameters)
        # n_ctx is the first of the settings, and the only one that is touched.
        settings.bytes[0] = tokens
        self._context = ctypes.c_void_p(
            self._call("llama_init_from_model", ctypes.c_void_p, ctypes.c_void_p(engine._model), settings)
        )
        if not self._context or self._call("llama_n_ctx", ctypes.c_uint32, self._context) < tokens:
            raise SystemExit(1)
        if threads is not None:
            count = ctypes.c_int32(threads)
            self._call("llama_set_n_threads", None, self._context, count, count)
        self._batch = self._call(
            "llama_batch_init", _Batch, ctypes.c_int32(AT_ONCE), ctypes.c_int32(0), ctypes.c_int32(1)
        )
        self._vocabulary = self._call("llama_vocab_n_tokens", ctypes.c_int32, engine._vocabulary)

    def clear(self) -> None:
        memory = ctypes.c_void_p(self._call("llama_get_memory", ctypes.c_void_p, self._context))
        self._call("llama_memory_clear", None, memory, ctypes.c_bool(True))

    def decoded(self, ids: Sequence[int], begin: int, wanted: Sequence[bool]) -> "np.ndarray":
        """Logits [number wanted, vocabulary] after those of `ids` that are wanted. begin: position of the first."""
        import numpy as np

        found = []
        for start in range(0, len(ids), AT_ONCE):
            flags = wanted[start : start + AT_ONCE]
            self._decode(ids[start : start + AT_ONCE], begin + start, flags)
            if count := sum(flags):
                logits = self._call("llama_get_logits", ctypes.POINTER(ctypes.c_float), self._context)
                found.append(np.ctypeslib.as_array(logits, (count, self._vocabulary)).copy())
        return np.concatenate(found)

    def _decode(self, ids: Sequence[int], begin: int, wanted: Sequence[bool]) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, begin + place
            batch.n_seq_id[place], batch.logits[place] = 1, int(wanted[place])
            batch.seq_id[place][0] = 0
        if self._call("llama_decode", ctypes.c_int32, self._context, batch) != 0:
            raise SystemExit(1)


def _perplexity(engine: _Engine, rows: list[tuple[list[int], list[bool]]], threads: int) -> float:
    """exp of the mean negative log-likelihood of all content tokens but a row's first."""
    import numpy as np

    context = engine.context(max(len(ids) for ids, _ in rows), threads)
    total, count = 0.0, 0
    for ids, content in rows:
        predicts = content[1:]
        if not any(predicts):
            continue
        context.clear()
        logits = context.decoded(ids[:-1], 0, predicts).astype(np.float64)
        targets = np.array(ids[1:])[np.array(predicts)]
        highest = logits.max(1, keepdims=True)
        sums = highest[:, 0] + np.log(np.exp(logits - highest).sum(1))
        total += float((sums - logits[np.arange(len(targets)), targets]).sum())
        count += len(targets)
    return float(np.exp(total / count))


def _speeds(engine: _Engine, ids: list[int], threads: int) -> dict[str, float]:
    prompt = (ids * PROMPT)[:PROMPT]
    context = engine.context(PROMPT + GENERATED, threads)
    firsts, following = [], []
    for _ in range(3):
        context.clear()
        start = time.perf_counter()
        token = int(context.decoded(prompt, 0, [False] * (PROMPT - 1) + [True]).argmax())
        first = time.perf_counter()
        for place in range(GENERATED):
            token = int(context.decoded([token], PROMPT + place, [True]).argmax())
        firsts.append(first - start)
        following.append(time.perf_counter() - first)
    first_token = median(firsts)
    return {
        "prompt_speed": PROMPT / first_token,
        "generation_speed": GENERATED / median(following),
        "first_token": first_token,
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _main() -> None:
    import numpy as np

    question = json.load(sys.stdin)
    engine = _Engine(Path(question["file"]))
    if "rows" in question:
        rows, threads = question["rows"], question["threads"]
        found: Any = {"threads": threads, **_speeds(engine, rows[0][0], threads), "resident": _resident()}
        found["perplexity"] = _perplexity(engine, rows, threads)
    else:
        np.save(question["logits"], engine.logits(question["ids"]))
        found = [engine.tokens(text) for text in question["texts"]]
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
