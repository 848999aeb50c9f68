"""Which measurements belong to the study as it stands now. No values are read here.

A storage outlives changes of its study: until the next run, what is there was made by an earlier recipe, or measured on
weights that have been made anew since. Such results are left out of what is shown, and named.
"""

from collections.abc import Mapping
from typing import Any

from compression_assets.store.artifact_store import Manifest
from compression_assets.study.leaderboard_models import LeaderboardModel, measured
from compression_assets.study.model import Study
from compression_assets.study.names import model_key, relative_directory

Manifests = Mapping[str, Manifest]
"""Of what is in the storage, by directory below the study's root; what was cleaned away cannot be asked."""


def outdated(study: Study, manifests: Manifests) -> dict[tuple[str, str], str]:
    """(model, part of its measurements) -> why these figures are not those of the study, where that can be told."""
    asked = settings_of(study)
    found = {}
    for model, part in measured(study):
        directory = str(relative_directory(model.asset(part)))
        why = (
            _another_recipe(study, model, manifests)
            or _other_settings(asked, manifests.get(directory))
            or _other_inputs(directory, manifests)
        )
        if why:
            found[model.key, part] = why
    return found


def _another_recipe(study: Study, model: LeaderboardModel, manifests: Manifests) -> str | None:
    """Whether a step on the way to the model was made by another recipe or seed than the study now has for it."""
    for length in range(1, len(model.path) + 1):
        node = study.nodes[model.path[:length]]
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


def _other_inputs(measurement: str, manifests: Manifests) -> str | None:
    """Whether anything on the way to a measurement was made from something that has been made anew since."""
    waiting, seen = [measurement], set()
    while waiting:
        directory = waiting.pop()
        manifest = manifests.get(directory)
        if manifest is None or directory in seen:
            continue
        seen.add(directory)
        for source, version in manifest.inputs.items():
            if source in manifests and manifests[source].data_version != version:
                return f"{source} was made anew after {directory}"
            waiting.append(source)
    return None
