"""P: neurons, layers, attention heads or channels of least importance go, and what is left is fine-tuned."""

from typing import Any

from compression_assets.techniques.pruning.apply import prune_step
from compression_assets.techniques.pruning.predict import predict_pruning
from compression_assets.techniques.pruning.recipe import PruningRecipe
from compression_assets.techniques.pruning.refusal import refusal
from compression_assets.techniques.technique import Reads, Technique
from compression_assets.training.sharing import shared


class Pruning(Technique):
    """P: removes what matters least (neurons, layers, heads or channels, by the recipe's cut), then fine-tunes."""

    name = "P"
    title = "structured pruning"
    Recipe = PruningRecipe
    checks = ("weights_finite", "size_as_asked", "cut_as_asked")
    apply = staticmethod(prune_step)
    predict = staticmethod(predict_pruning)
    refusal = staticmethod(refusal)

    @classmethod
    def gpus(cls, recipe: Any, training: int) -> int:
        return shared(recipe.finetune, training)

    @classmethod
    def settled(cls, recipe: PruningRecipe, row_multiple: int) -> PruningRecipe:
        if recipe.multiple_of is not None or not {"width", "hidden"} & set(recipe.cuts):
            return recipe
        return recipe.model_copy(update={"multiple_of": row_multiple})

    @classmethod
    def reads(cls, recipe: Any) -> Reads:
        return Reads(("calibration_set", "finetuning_set"))
