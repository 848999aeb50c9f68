"""Which models of a study have a diagnostics asset, and what a Q is compared with. No measurement in here."""

from compression_assets.study.model import Study
from compression_assets.study.orderings import DEQUANTIZATION, Node, StepPath, last_quantized, technique_of
from compression_assets.techniques import registry
from compression_assets.weights.formats.format import Format

COMPARED = "nf4"
"""The number format whose codes and bins the comparison knows."""


def diagnosed(study: Study) -> list[Node]:
    """Models that have a diagnostics asset: those to be scored, and those that a Q after some training left.

    Only of orderings that are compared; models that are made to be served are measured in their engine.
    """
    settings = study.evaluation.diagnostics
    if settings is None:
        return []
    compared = {
        ordering.path[:length]
        for ordering in study.parsed_orderings
        for length in range(len(ordering.path) + 1)
    }
    return [
        node
        for node in study.nodes.values()
        if node.path in compared
        and ((settings.perplexity_of_steps and to_score(node)) or follows_training(study, node))
    ]


def to_score(node: Node) -> bool:
    return node.parent is not None and node.final is None and node.technique != DEQUANTIZATION


def follows_training(study: Study, node: Node) -> bool:
    """Whether the node's step quantizes to NF4 a model that some training has changed, after no Q or one to NF4."""
    if not node.parent or node.technique is None or not registry.technique(node.technique).quantizes:
        return False
    quantizers = [token for token in node.path if registry.technique(technique_of(token)).quantizes]
    return all(_leaves(study, token).name == COMPARED for token in quantizers)


def compared_with(node: Node) -> tuple[StepPath, StepPath | None, list[StepPath]]:
    """What a Q after training is compared with: (start of the training, its quantized form, all models since).

    The last of the models is the one that was quantized; each may have lost layers or parts of them.
    """
    quantized = last_quantized(node.path)
    start = (*quantized, DEQUANTIZATION) if quantized else node.path[:-2]
    return start, quantized, [node.path[:length] for length in range(len(start) + 1, len(node.path))]


def _leaves(study: Study, token: str) -> Format:
    return registry.technique(technique_of(token)).leaves(study.recipe(token))
