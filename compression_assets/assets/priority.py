"""Which of the steps that could start goes first: a finished model's measurement, then the longest way to go.

With two steps at work at once, a run ends soonest when the step with most work behind it never waits.
"""

from compression_assets.assets.layout import model_key
from compression_assets.costs import expected_seconds
from compression_assets.orderings import StepPath
from compression_assets.study import Study

PRIORITY = "dagster/priority"
MEASURE = "10000"
"""A finished model is measured before the next one is built, so that the leaderboard fills early."""

FILL = "-1"
"""Work that nothing waits for: it fills the gaps that the models leave."""


def longest_way(study: Study, path: StepPath) -> int:
    """Expected seconds from the start of this node to the end of the longest ordering through it."""
    costs = expected_seconds(study)
    below = [
        sum(
            costs[model_key(study.nodes[node.path[:length]])]
            for length in range(len(path), len(node.path) + 1)
        )
        for node in study.nodes.values()
        if node.path[: len(path)] == path
    ]
    return round(max(below))


def model_priority(study: Study, path: StepPath) -> dict[str, str]:
    """Op tags of a node of the prefix tree."""
    return {PRIORITY: str(longest_way(study, path))}


def teacher_priority(study: Study) -> dict[str, str]:
    """Op tags of the teacher and its logits: every distillation step waits for them."""
    return {PRIORITY: str(longest_way(study, ()))}
