"""Dropping layers of a model whose decoder layers are `model.layers`."""

from compression_assets.store.reports import StepReport
from compression_assets.strict import Strict
from compression_assets.techniques.step import StepInputs
from compression_assets.weights.checkpoints import load_full_precision, save_full_precision
from compression_assets.weights.origins import write_origins


class DepthRecipe(Strict):
    """drop: how many layers."""

    drop: int = 1


def drop_layers(step: StepInputs) -> StepReport:
    """The last layer stays, those before it go."""
    from torch.nn import ModuleList

    model = load_full_precision(step.parent)
    layers = model.model.layers
    first = len(layers) - 1 - step.recipe.drop
    kept = [*range(first), len(layers) - 1]
    model.model.layers = ModuleList([layers[index] for index in kept])
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    save_full_precision(model, step.output, tokenizer_from=step.parent, masters=True)
    write_origins(step.output, {f"model.layers.{new}": f"model.layers.{old}" for new, old in enumerate(kept)})
    return StepReport(metadata={"layers_kept": kept})
