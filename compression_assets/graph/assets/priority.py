"""Which of the steps that could start goes first: what a useful leaderboard takes, then the longest way to go.

With two steps at work at once, a run ends soonest when the step with most work behind it never waits. Before that
counts, the first rows of the leaderboard do: the base, each technique alone and one whole ordering (`leading`).
"""

from compression_assets.planning.costs import expected_seconds
from compression_assets.study.model import Study
from compression_assets.study.names import model_key
from compression_assets.study.orderings import StepPath

PRIORITY = "dagster/priority"
# The expected seconds of a way, which are priorities too, stay far below these.
FIRST = str(10**9)
"""What everything waits for: data sets, the teacher and its logits."""

LEADING = 5 * 10**8
"""The ordering that is finished first: its training is the longest way to the first useful leaderboard."""

MEASURE = str(10**8)
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


def leading(study: Study) -> StepPath:
    """The ordering that is finished first: of those with most steps in the study file, the first one listed."""
    return max(study.parsed_orderings, key=lambda ordering: ordering.text.count("-")).path


def model_priorities(study: Study) -> dict[StepPath, int]:
    """For each node its priority: above all others the steps of the leading ordering, then the longest way first."""
    first = leading(study)
    return {
        path: seconds + LEADING * (path == first[: len(path)])
        for path, seconds in longest_ways(study).items()
    }
