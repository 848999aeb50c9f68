"""llama.cpp itself, as the wheel xllamacpp brings it: how it tokenises texts and what it predicts.

It runs in a process of its own, since it ends its process where a file is not what it expects. The wheel exports
llama.cpp's C functions (include/llama.h); its Python classes offer neither tokens nor logits.
"""

import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    import numpy as np

TIMEOUT = 1800.0
"""Seconds for loading a file and one short forward pass."""


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
        question = {"file": str(file), "texts": list(texts), "ids": list(ids), "logits": str(logits)}
        done = subprocess.run(
            [sys.executable, "-m", "compression_assets.takeaway.llama_cpp"],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise StudyError(
                f"llama.cpp cannot use {file}: {' / '.join(said[-2:])[:300] or 'it said nothing'}"
            )
        return json.loads(done.stdout), np.load(logits)


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

    def __init__(self, file: Path):
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
        """Of shape [len(ids), vocabulary]; at most 512 ids, llama.cpp's smallest batch."""
        import numpy as np

        context = self._call(
            "llama_init_from_model",
            ctypes.c_void_p,
            ctypes.c_void_p(self._model),
            self._call("llama_context_default_params", _Parameters),
        )
        batch = self._call(
            "llama_batch_init", _Batch, ctypes.c_int32(len(ids)), ctypes.c_int32(0), ctypes.c_int32(1)
        )
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.logits[position] = 1, 1
            batch.seq_id[position][0] = 0
        if not context or self._call("llama_decode", ctypes.c_int32, ctypes.c_void_p(context), batch) != 0:
            raise SystemExit(1)
        found = self._call("llama_get_logits", ctypes.POINTER(ctypes.c_float), ctypes.c_void_p(context))
        size = self._call("llama_vocab_n_tokens", ctypes.c_int32, self._vocabulary)
        return np.ctypeslib.as_array(found, (len(ids), size)).copy()

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = self._library[name]
        function.restype = result
        return function(*arguments)


def _main() -> None:
    import numpy as np

    question = json.load(sys.stdin)
    engine = _Engine(Path(question["file"]))
    np.save(question["logits"], engine.logits(question["ids"]))
    print(json.dumps([engine.tokens(text) for text in question["texts"]]))


if __name__ == "__main__":
    _main()
