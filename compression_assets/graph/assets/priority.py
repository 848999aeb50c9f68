"""Which of the steps that could start goes first: a finished model's perplexity, then the longest way to go.

With two steps at work at once, a run ends soonest when the step with most work behind it never waits.
"""

from compression_assets.planning.costs import expected_seconds
from compression_assets.study.model import Study
from compression_assets.study.names import model_key
from compression_assets.study.orderings import StepPath

PRIORITY = "dagster/priority"
MEASURE = "10000"
"""A finished model is measured before the next one is built, so that the leaderboard fills early."""

FILL = "-1"
"""Answers and what is made of them: nothing waits for them, so they fill the gaps that the models leave."""


def longest_ways(study: Study) -> dict[StepPath, int]:
    """For each node, expected seconds from its start to the end of the longest ordering through it."""
    costs = expected_seconds(study)
    ways: dict[StepPath, float] = {}
    for node in reversed(study.nodes.values()):  # children before their parents
        ways[node.path] = ways.get(node.path, 0.0) + costs[model_key(node)]
        if node.parent is not None:
            ways[node.parent] = max(ways.get(node.parent, 0.0), ways[node.path])
    return {path: round(seconds) for path, seconds in ways.items()}


def teacher_priority(study: Study) -> dict[str, str]:
    """Op tags of the teacher and its logits: every distillation step waits for them."""
    return {PRIORITY: str(longest_ways(study)[()])}
