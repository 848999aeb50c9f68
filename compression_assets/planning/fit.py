"""Whether the models of a study can go through what it asks of them: from config.json alone, before any work."""

from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.planning.models import config_of
from compression_assets.planning.steps import Predictions
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL, relative_directory
from compression_assets.techniques.prediction import StepContext


def refuse_unfit(study: Study, downloads: Path, root: Path | None = None) -> list[str]:
    """Raise StudyError, in one sentence, for a step that cannot be applied to what the steps before it leave.

    downloads, root: as for `plan.make_plan`. Returns notes on models of which nothing is known before they are fetched.
    """
    built = None if root is None else root / relative_directory(BASE_MODEL)
    try:
        base = config_of(study.base_model, downloads, built)
    except StudyError:
        return ["base_model: looked at when it is fetched, its config.json is not on this machine yet"]
    found = Predictions(study, base, StepContext(max_length=study.data.max_length))
    for node in study.nodes.values():
        found.of(node)
    return []
