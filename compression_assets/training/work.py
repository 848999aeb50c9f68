"""Floating-point operations of forward passes and of training, from the numbers of a config.json and of the data."""

from dataclasses import dataclass

from compression_assets.training.schedule import TrainingRecipe
from compression_assets.weights.shapes import Config, attention_width, linear_parameters


@dataclass(frozen=True)
class Volume:
    """A split: its conversations, tokens with template, and tokens that training learns. measured: read from disk.

    Before the split is there, what ends messages is not known and not in `trained`: up to a tenth of short chats.
    """

    rows: int
    tokens: int
    trained: int
    measured: bool = False

    @property
    def row_length(self) -> float:
        return self.tokens / self.rows if self.rows else 0.0


def epochs_of(recipe: TrainingRecipe, volume: Volume) -> float:
    """Passes over the data, a limit on tokens included."""
    limit = recipe.max_tokens
    return min(recipe.epochs, limit / volume.trained) if limit and volume.trained else recipe.epochs


def tokens_of(recipe: TrainingRecipe, volume: Volume) -> int:
    """Content and message ends trained on, over all epochs."""
    return int(volume.trained * epochs_of(recipe, volume))


def forward_flops(config: Config, volume: Volume) -> float:
    """One pass over a split without the output layer: 2 a weight and token, and attention over whole rows."""
    if not volume.tokens:  # only memory is asked for, and other architectures take seconds to be counted
        return 0.0
    attention = 4.0 * volume.row_length * config["num_hidden_layers"] * attention_width(config)
    return volume.tokens * (2.0 * linear_parameters(config) + attention)


def head_flops(config: Config, volume: Volume) -> float:
    """The output layer over a split's trained tokens, the only ones that logits are made for."""
    return 2.0 * volume.trained * config["vocab_size"] * config["hidden_size"]


def training_flops(config: Config, recipe: TrainingRecipe, volume: Volume) -> float:
    """Forward and twice as much backward; checkpointing runs forward once more."""
    body = forward_flops(config, volume) * (4 if recipe.gradient_checkpointing else 3)
    return epochs_of(recipe, volume) * (body + 3 * head_flops(config, volume))


def scoring_flops(config: Config, volume: Volume) -> float:
    return forward_flops(config, volume) + head_flops(config, volume)
