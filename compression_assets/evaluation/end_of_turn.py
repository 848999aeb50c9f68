"""How likely a model finds it that a message ends where it ends: what perplexity, that of content, does not see.

A model that training has taught to go on scores well on content and never stops.
"""

import math
from collections.abc import Sequence

from compression_assets.evaluation.rows import MetricRow, Sample, mean_row
from compression_assets.text.datasets import TokenDataset

METRIC = "end_of_turn"
NO_ENDS = "the chat template ends messages with nothing of its own"
LEAST_OF_BASE = 0.5
"""Share of the base's value below which a model has unlearned to end its answers."""


def end_of_turn(dataset: TokenDataset, ends: Sequence[Sequence[float]]) -> tuple[MetricRow, list[Sample]]:
    """Mean probability of the tokens that end a message, over all messages of a data set; a sample a conversation.

    ends: `PerplexityResult.ends` of the same data set. Where a template ends messages with several tokens it is the
    probability of all of them in a row.
    """
    samples = []
    for row, logs in zip(dataset, ends, strict=True):
        of_place = dict(zip(row.ends, logs, strict=True))
        found = [math.exp(sum(of_place[place] for place in places)) for places in row.message_ends]
        if found:
            samples.append(Sample(METRIC, row.id, math.fsum(found), len(found)))
    if not samples:
        return no_end_of_turn(NO_ENDS), []
    return mean_row(METRIC, samples, higher_is_better=True), samples


def no_end_of_turn(reason: str) -> MetricRow:
    """The row of a model that cannot be measured."""
    return MetricRow(METRIC, None, "0..1", 0, higher_is_better=True, note=reason)


def unlearned(values: dict[str, float | None], base: str) -> dict[str, float]:
    """The models whose value is below half of the base's, of `values` by model; none while the base has no value."""
    reference = values.get(base)
    if reference is None:
        return {}
    return {
        model: value
        for model, value in values.items()
        if value is not None and value < LEAST_OF_BASE * reference
    }
