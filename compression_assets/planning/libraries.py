"""Optional libraries that a study asks for: what is missing is told before any work, not by the step that needs it."""

from importlib.util import find_spec

from compression_assets.errors import StudyError
from compression_assets.evaluation.harness import INSTALL as HARNESS
from compression_assets.study.model import Study

MLFLOW = "pip install 'compression-assets[mlflow]'"


def missing_libraries(study: Study) -> list[str]:
    """A sentence for each optional library that the study asks for and that is not installed."""
    asked = (
        ("tracking.mlflow", study.tracking, "mlflow", MLFLOW),
        ("evaluation.harness", study.evaluation.harness, "lm_eval", HARNESS),
    )
    return [
        f"{key} needs {library}, which is not installed; run: {command}"
        for key, wanted, library, command in asked
        if wanted is not None and find_spec(library) is None
    ]


def refuse_missing_libraries(study: Study) -> None:
    """Raise StudyError with the first of them."""
    for sentence in missing_libraries(study):
        raise StudyError(sentence)
