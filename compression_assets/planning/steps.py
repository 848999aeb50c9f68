"""What each step of a study will come to: its technique's prediction, from the base model's config on."""

from collections.abc import Mapping

from compression_assets.errors import StudyError
from compression_assets.store.fingerprints import fingerprint
from compression_assets.strict import Strict
from compression_assets.study.model import Study
from compression_assets.study.names import DATASETS
from compression_assets.study.orderings import Node, StepPath, recipe_token
from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.techniques.registry import technique
from compression_assets.techniques.technique import Technique
from compression_assets.training.work import Volume
from compression_assets.weights.shapes import Config


class Predictions:
    """Predictions of a study's models by path, each made once."""

    def __init__(self, study: Study, base: Config, context: StepContext, *, checked: bool = True) -> None:
        """context: where the steps run, and what they read.

        checked: whether the technique is asked if it can be applied, for which some build the model without weights.
        """
        self._study, self._context, self._checked = study, context, checked
        self._made: dict[StepPath, Prediction] = {(): Prediction(base)}
        self._refusals: dict[str, str | None] = {}

    def of(self, node: Node) -> Prediction:
        """Raises StudyError when the node's step, or one before it, cannot be applied to its parent's config."""
        if node.path not in self._made:
            assert node.parent is not None and node.step is not None
            parent, recipe = self.of(self._study.nodes[node.parent]), self._study.recipe(node.step)
            one = technique(node.technique or "")
            if self._checked and (reason := self._refusal(one, parent.config, recipe)):
                raise StudyError(f"{recipe_token(node.step)} cannot be applied to it: {reason}")
            self._made[node.path] = one.predict(parent.config, recipe, self._context)
        return self._made[node.path]

    def _refusal(self, one: type[Technique], config: Config, recipe: Strict) -> str | None:
        """Asked once of a config and a recipe, which many orderings share."""
        asked = fingerprint([one.name, config, recipe.model_dump(mode="json")])
        if asked not in self._refusals:
            self._refusals[asked] = one.refusal(config, recipe)
        return self._refusals[asked]


def data_volumes(splits: Mapping[str, Volume]) -> dict[str, Volume]:
    """Data asset -> its volume, from volumes by split."""
    return {DATASETS[split]: volume for split, volume in splits.items()}
