"""DP: whole layers go, those before the last."""

from typing import Any

from compression_assets.techniques.prediction import Prediction, StepContext
from compression_assets.techniques.technique import Technique
from compression_assets.weights.shapes import Config
from two_techniques.drop import DepthRecipe, drop_layers


class DepthPruning(Technique):
    """DP: drops layers without training."""

    name = "DP"
    title = "depth pruning"
    Recipe = DepthRecipe
    apply = staticmethod(drop_layers)

    @staticmethod
    def refusal(config: Config, recipe: Any) -> str | None:
        if recipe.drop < config["num_hidden_layers"]:
            return None
        return f"it would drop {recipe.drop} of {config['num_hidden_layers']} layers"

    @classmethod
    def predict(cls, config: Config, recipe: Any, context: StepContext) -> Prediction:
        return Prediction({**config, "num_hidden_layers": config["num_hidden_layers"] - recipe.drop})
