"""Which engine a served model needs, and whether it is there."""

from compression_assets.evaluation.engines import llama_cpp, vllm
from compression_assets.evaluation.engines.settings import LLAMA_CPP, ServedSettings


def missing(served: ServedSettings) -> str:
    """What the engine of a served model lacks on this machine, and what to do; "" if it is there."""
    if served.engine == LLAMA_CPP:
        return "" if llama_cpp.available() else f"llama.cpp is not installed: {llama_cpp.INSTALL}"
    return "" if vllm.available() else f"vLLM is not there: {vllm.INSTALL}"
