"""What an artifact's content depends on among the code, where a registry stands between: techniques and formats."""

from collections.abc import Callable
from typing import Any

from compression_assets.study.model import Study
from compression_assets.study.orderings import Node, StepPath, quantized_by, technique_of
from compression_assets.techniques.registry import technique
from compression_assets.techniques.technique import Technique


def step_code(study: Study, node: Node) -> tuple[str, ...]:
    """Of a step: what applies it and its recipe, not what predicts its costs; the formats that it reads and writes."""
    formats = (*format_code(study, node.path[:-1]), *format_code(study, node.path))
    return tuple(dict.fromkeys((*technique_code(technique(node.technique or "")), *formats)))


def technique_code(made_by: type[Technique]) -> tuple[str, str]:
    """What applies a technique, and its recipe."""
    return _place(made_by.apply), _place(made_by.Recipe)


def format_code(study: Study, path: StepPath) -> tuple[str, ...]:
    """Of whatever reads a model: how the number format decodes that the last step of its path has left."""
    token = quantized_by(path)
    return (
        () if token is None else (_place(type(technique(technique_of(token)).leaves(study.recipe(token)))),)
    )


def _place(part: "Callable[..., Any] | type") -> str:
    return f"{part.__module__}:{part.__qualname__.partition('.')[0]}"
