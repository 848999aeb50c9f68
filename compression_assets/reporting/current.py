"""Which measurements belong to the study as it stands now. No values are read here.

A storage outlives changes of its study: until the next run, what is there was made by an earlier recipe, or measured on
weights that have been made anew since. Such results are left out of what is shown, and named.
"""

from collections.abc import Mapping
from typing import Any

from compression_assets.store.artifact_store import Manifest
from compression_assets.study.leaderboard_models import measured
from compression_assets.study.model import ModelTeacher, Study
from compression_assets.study.names import (
    BASE_MODEL,
    DATASETS,
    QUESTION_SET,
    TEACHER_MODEL,
    model_key,
    relative_directory,
)
from compression_assets.study.orderings import StepPath

HARNESS = "harness"
Manifests = Mapping[str, Manifest]
"""Of what is in the storage, by directory below the study's root; what was cleaned away cannot be asked."""


def outdated(study: Study, manifests: Manifests) -> dict[tuple[str, str], str]:
    """(model, part of its measurements) -> why these figures are not those of the study, where that can be told."""
    asked, sources = settings_of(study), source_settings(study)
    found = {}
    for model, part in measured(study):
        directory = str(relative_directory(model.asset(part)))
        why = (
            another_recipe(study, model.path, manifests)
            or _other_settings(asked, manifests.get(directory))
            or _other_harness(study, manifests.get(directory), part)
            or _other_inputs(directory, manifests, sources)
        )
        if why:
            found[model.key, part] = why
    return found


def another_recipe(study: Study, path: StepPath, manifests: Manifests) -> str | None:
    """Whether a step of `path` was made by another recipe or seed than the study now has for it, and which."""
    for length in range(1, len(path) + 1):
        node = study.nodes[path[:length]]
        manifest = manifests.get(str(relative_directory(model_key(node))))
        if manifest is None or node.step is None:
            continue
        if manifest.recipe != study.recipe(node.step).model_dump(mode="json"):
            return f"{node.step} was made by another recipe than the study's"
        if manifest.seed != (study.seed if node.seed is None else node.seed):
            return f"{node.step} was made with another seed than the study's"
    return None


def settings_of(study: Study) -> dict[str, Any]:
    """What the study now says about evaluation, by the names under which measurements keep it."""
    asked = study.evaluation
    return {
        "perplexity": asked.perplexity.model_dump(mode="json"),
        "answers": asked.answers.model_dump(mode="json") if asked.answers else None,
        "clarity": asked.clarity.model_dump(mode="json") if asked.clarity else None,
        "judge": asked.judge.content() if asked.judge else None,
        "text": asked.text.model_dump(mode="json") if asked.text else None,
    }


def _other_settings(asked: Mapping[str, Any], manifest: Manifest | None) -> str | None:
    recipe = manifest.recipe if manifest else {}
    for name in asked.keys() & recipe.keys():
        if recipe[name] != asked[name]:
            return f"measured with other settings of evaluation.{name} than the study's"
    return None


def _other_harness(study: Study, manifest: Manifest | None, part: str) -> str | None:
    if part != HARNESS or manifest is None or study.evaluation.harness is None:
        return None
    # "made_of" is added by whoever measures: the tasks' own files.
    measured_with = {name: value for name, value in manifest.recipe.items() if name != "made_of"}
    if measured_with != study.evaluation.harness.model_dump(mode="json"):
        return "measured with other settings of evaluation.harness than the study's"
    return None


def source_settings(study: Study) -> dict[str, Mapping[str, Any]]:
    """Directory of what the study fetches or prepares -> the settings by which it now does."""
    data = study.data.model_dump(mode="json")
    found = {asset: {"data": data, "split": split} for split, asset in DATASETS.items()}
    found[BASE_MODEL] = study.base_model.model_dump(mode="json")
    if study.teacher is not None:
        teacher = study.teacher.source if isinstance(study.teacher, ModelTeacher) else study.teacher
        found[TEACHER_MODEL] = teacher.model_dump(mode="json")
    if study.data.questions is not None:
        found[QUESTION_SET] = study.data.questions.model_dump(mode="json")
    return {str(relative_directory(asset)): settings for asset, settings in found.items()}


def _other_inputs(
    measurement: str, manifests: Manifests, sources: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Whether anything on the way to a measurement is of another source, or of something made anew since."""
    waiting, seen = [measurement], set()
    while waiting:
        directory = waiting.pop()
        manifest = manifests.get(directory)
        if manifest is None or directory in seen:
            continue
        seen.add(directory)
        if directory in sources and manifest.recipe != sources[directory]:
            return f"{directory} was made by other settings than the study's"
        for source, version in manifest.inputs.items():
            if source in manifests and manifests[source].data_version != version:
                return f"{source} was made anew after {directory}"
            waiting.append(source)
    return None
