"""Optional libraries and engines that a study asks for: what is missing is told before any work."""

from importlib.util import find_spec

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines import llama_cpp, vllm
from compression_assets.evaluation.engines.settings import LLAMA_CPP, ServedSettings
from compression_assets.evaluation.harness import INSTALL as HARNESS
from compression_assets.study.model import Study

MLFLOW = "pip install 'compression-assets[mlflow]'"


def refuse_missing_libraries(study: Study) -> None:
    """Raise StudyError with the first of them, and how to install it."""
    for index, served in enumerate(study.evaluation.serving):
        if lacks := _missing_engine(served):
            raise StudyError(f"evaluation.serving[{index}]: {lacks}; or take it out of the study")
    for key, asked, library, install in (
        ("tracking.mlflow", study.tracking, "mlflow", MLFLOW),
        ("evaluation.harness", study.evaluation.harness, "lm_eval", HARNESS),
    ):
        if asked is not None and find_spec(library) is None:
            raise StudyError(f"{key} needs {library}, which is not installed; run: {install}")


def _missing_engine(served: ServedSettings) -> str:
    """What the engine of a served model lacks on this machine, and what to do; "" if it is there."""
    if served.engine == LLAMA_CPP:
        return "" if llama_cpp.available() else f"llama.cpp is not installed: {llama_cpp.INSTALL}"
    return "" if vllm.available() else f"vLLM is not there: {vllm.INSTALL}"
