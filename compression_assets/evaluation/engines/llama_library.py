"""llama.cpp's C functions as the wheel xllamacpp exports them (include/llama.h, ggml.h), called through ctypes.

The wheel's Python classes offer neither tokens nor logits nor the quantizer.
"""

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

AT_ONCE = 512
"""Tokens in a forward pass: llama.cpp's smallest batch."""
N_CTX, N_SEQ_MAX = 0, 3
"""Places in llama_context_params; llama.cpp is asked afterwards whether they were meant so."""


@cache
def library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None and spec.submodule_search_locations
    return ctypes.CDLL(str(next(Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so"))))


def call(name: str, result: Any, *arguments: Any) -> Any:
    """Call a function of the library. result: its ctypes type, None for void."""
    function = library()[name]
    function.restype = result
    return function(*arguments)


class Token(NamedTuple):
    """One token of a forward pass. sequence: which text it is of. wanted: whether the logits after it are."""

    id: int
    position: int
    sequence: int = 0
    wanted: bool = False


class _Parameters(ctypes.Structure):
    """Settings by value. Longer than llama.cpp's own, whose fields differ from release to release and are not read."""

    _fields_ = [("words", ctypes.c_uint32 * 512)]


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


class Model:
    """One loaded file. Ends the process where llama.cpp cannot load it; llama.cpp says why on stderr."""

    def __init__(self, file: Path) -> None:
        call("llama_backend_init", None)
        defaults = call("llama_model_default_params", _Parameters)
        self.pointer = ctypes.c_void_p(
            call("llama_model_load_from_file", ctypes.c_void_p, str(file).encode(), defaults)
        )
        if not self.pointer:
            raise SystemExit(1)
        self.vocabulary = ctypes.c_void_p(call("llama_model_get_vocab", ctypes.c_void_p, self.pointer))

    def tokens(self, text: str) -> list[int]:
        """Special tokens written in a text count as such; none are added."""
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 16))()
        length, most = ctypes.c_int32(len(raw)), ctypes.c_int32(len(room))
        add, parse = ctypes.c_bool(False), ctypes.c_bool(True)
        count = call("llama_tokenize", ctypes.c_int32, self.vocabulary, raw, length, room, most, add, parse)
        return list(room[:count])


class Context:
    """Room for `sequences` texts of `tokens` tokens each."""

    def __init__(self, model: Model, tokens: int, sequences: int = 1, threads: int | None = None) -> None:
        settings = call("llama_context_default_params", _Parameters)
        settings.words[N_CTX], settings.words[N_SEQ_MAX] = tokens * sequences, sequences
        self._context = ctypes.c_void_p(
            call("llama_init_from_model", ctypes.c_void_p, model.pointer, settings)
        )
        if not self._context or self._asked("llama_n_ctx") < tokens * sequences:
            raise SystemExit(1)
        if self._asked("llama_n_seq_max") != sequences:
            raise SystemExit("this release of llama.cpp has its settings in another order")
        if threads is not None:
            count = ctypes.c_int32(threads)
            call("llama_set_n_threads", None, self._context, count, count)
        one, none = ctypes.c_int32(1), ctypes.c_int32(0)
        self._batch = call("llama_batch_init", _Batch, ctypes.c_int32(AT_ONCE), none, one)
        self._vocabulary = call("llama_vocab_n_tokens", ctypes.c_int32, model.vocabulary)

    def clear(self) -> None:
        memory = ctypes.c_void_p(call("llama_get_memory", ctypes.c_void_p, self._context))
        call("llama_memory_clear", None, memory, ctypes.c_bool(True))

    def free(self) -> None:
        call("llama_free", None, self._context)

    def decoded(self, tokens: Sequence[Token]) -> "np.ndarray":
        """Logits [number wanted, vocabulary] after the tokens that are wanted, in their order."""
        import numpy as np

        found = []
        for start in range(0, len(tokens), AT_ONCE):
            part = tokens[start : start + AT_ONCE]
            self._decode(part)
            if count := sum(token.wanted for token in part):
                logits = call("llama_get_logits", ctypes.POINTER(ctypes.c_float), self._context)
                found.append(np.ctypeslib.as_array(logits, (count, self._vocabulary)).copy())
        return np.concatenate(found)

    def _decode(self, tokens: Sequence[Token]) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token.id, token.position
            batch.n_seq_id[place], batch.logits[place] = 1, int(token.wanted)
            batch.seq_id[place][0] = token.sequence
        if call("llama_decode", ctypes.c_int32, self._context, batch) != 0:
            raise SystemExit(1)

    def _asked(self, name: str) -> int:
        found: int = call(name, ctypes.c_uint32, self._context)
        return found
