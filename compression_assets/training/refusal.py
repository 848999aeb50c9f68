"""Which models cannot be trained here, known from config.json."""

from typing import Any

from compression_assets.weights import architectures
from compression_assets.weights.architectures import Config


def refusal(config: Config, recipe: Any = None) -> str | None:
    """Why the training loop cannot train a model of this config, in one sentence, or None."""
    kind = architectures.kind(config)
    if architectures.has_experts(config):
        return (
            f"models of type {kind!r} are mixtures of experts, and the loss that keeps their experts balanced is not "
            "part of training here: use a dense model"
        )
    return of_teacher(config)


def of_teacher(config: Config) -> str | None:
    """Why the logits of a teacher of this config cannot be stored, in one sentence, or None."""
    kind = architectures.kind(config)
    if not architectures.head_makes_logits(config):
        return (
            f"models of type {kind!r} scale or cap what their output layer gives before it counts as logits, which the "
            "chunked loss of training does not do: use a model without that, or orderings without training (Q alone)"
        )
    return None
