"""Which models of a study have a diagnostics asset, and what a Q is compared with. No measurement in here."""

from compression_assets.study.model import Study
from compression_assets.study.orderings import DEQUANTIZATION, Node, StepPath, last_quantized, technique_of
from compression_assets.techniques import registry

PRUNING = "P"


def diagnosed(study: Study) -> list[Node]:
    """Models that have a diagnostics asset: those to be scored, and those that a Q after some training left."""
    settings = study.evaluation.diagnostics
    if settings is None:
        return []
    return [
        node
        for node in study.nodes.values()
        if (settings.perplexity_of_steps and to_score(node)) or follows_training(study, node)
    ]


def to_score(node: Node) -> bool:
    return node.parent is not None and node.final is None and node.technique != DEQUANTIZATION


def follows_training(study: Study, node: Node) -> bool:
    """Whether the node's step quantizes to NF4 a model that some training has changed, after no Q or one to NF4."""
    if not node.parent or node.technique is None or not registry.technique(node.technique).quantizes:
        return False
    quantizers = [token for token in node.path if registry.technique(technique_of(token)).quantizes]
    return all(getattr(study.recipe(token), "kind", "nf4") == "nf4" for token in quantizers)


def compared_with(study: Study, node: Node) -> tuple[StepPath, StepPath | None, list[StepPath]]:
    """What a Q after training is compared with: (start of the training, its quantized form, pruned models between)."""
    quantized = last_quantized(node.path)
    start = (*quantized, DEQUANTIZATION) if quantized else node.path[:-2]
    between = [node.path[:length] for length in range(len(start) + 1, len(node.path))]
    return start, quantized, [path for path in between if study.nodes[path].technique == PRUNING]
