"""ggml's own quantizer, one tensor at a time: K-quants, IQ4_NL, and any type by the importance of columns.

`ggml_quantize_chunk` of ggml.h, from the wheel xllamacpp. It takes whole rows and lets go of Python's lock, so that
threads share a tensor.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from compression_assets.evaluation.engines import llama_cpp
from compression_assets.evaluation.engines.llama_library import call

if TYPE_CHECKING:
    import gguf
    import numpy as np

ROWS_AT_ONCE = 64


def quantize(
    weight: "np.ndarray", kind: "gguf.GGMLQuantizationType", importance: "np.ndarray | None" = None
) -> "np.ndarray":
    """A weight fp32 [out, in] as bytes [out, bytes of a row]; `in` is a multiple of the type's block.

    importance: fp32 [in], by which squared errors are weighed: mean squares of a layer's inputs. Raises StudyError
    where llama.cpp is not installed.
    """
    import gguf
    import numpy as np

    llama_cpp.require()
    block, size = gguf.GGML_QUANT_SIZES[kind]
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    found = np.empty((weight.shape[0], weight.shape[1] // block * size), dtype=np.uint8)
    by_column = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)

    def rows(start: int) -> None:
        part, target = weight[start : start + ROWS_AT_ONCE], found[start : start + ROWS_AT_ONCE]
        written = call(
            "ggml_quantize_chunk",
            ctypes.c_size_t,
            ctypes.c_int(int(kind)),
            _address(part),
            _address(target),
            ctypes.c_int64(0),
            ctypes.c_int64(len(part)),
            ctypes.c_int64(weight.shape[1]),
            None if by_column is None else _address(by_column),
        )
        if written != target.nbytes:
            raise RuntimeError(f"ggml wrote {written} bytes of {kind.name}, not {target.nbytes}")

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(rows, range(0, len(weight), ROWS_AT_ONCE)))
    return found


def _address(array: "np.ndarray") -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
