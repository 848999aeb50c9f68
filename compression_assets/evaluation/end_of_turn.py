"""How likely a model finds it that a message ends where it ends: what perplexity, that of content, does not see.

A model that training has taught to go on scores well on content and never stops.
"""

import inspect
import math
from typing import TYPE_CHECKING

from compression_assets.evaluation.rows import MetricRow, Sample, mean_row
from compression_assets.store.reports import Report, no_report

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from compression_assets.text.datasets import TokenDataset, TokenRow

METRIC = "end_of_turn"
NO_ENDS = "the chat template ends messages with nothing of its own"
LEAST_OF_BASE = 0.5
"""Share of the base's value below which a model has unlearned to end its answers."""


def measure_end_of_turn(
    model: "PreTrainedModel", dataset: "TokenDataset", batch_size: int, report: Report = no_report
) -> tuple[MetricRow, list[Sample]]:
    """Mean probability of the tokens that end a message, over all messages of a data set; a sample a conversation.

    Where a template ends messages with several tokens it is the probability of all of them in a row. Logits are those
    of the model's own forward pass. Raises ValueError when one of them is not finite.
    """
    from compression_assets.text.batches import length_buckets
    from compression_assets.text.datasets import TokenDataset

    ending = TokenDataset([row for row in dataset if row.message_ends])
    found: dict[str, list[float]] = {}
    for indices in length_buckets(ending, batch_size, seed=None):
        rows = [ending[index] for index in indices]
        for row, logs in zip(rows, _log_probabilities(model, rows), strict=True):
            found[row.id] = [math.exp(sum(logs[place] for place in places)) for places in row.message_ends]
        report(len(found), len(ending), "ends of messages")
    samples = [Sample(METRIC, row.id, math.fsum(found[row.id]), len(found[row.id])) for row in ending]
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


def _log_probabilities(model: "PreTrainedModel", rows: "list[TokenRow]") -> list[dict[int, float]]:
    """For each row the log-probability (nats) of its token at each of its `ends`."""
    import torch

    from compression_assets.text.batches import collate

    batch = collate(rows, pad_id=0).to(model.device)
    # A token is predicted at the place before it.
    places = sorted({place - 1 for row in rows for place in row.ends})
    column = {place: index for index, place in enumerate(places)}
    with torch.inference_mode():
        logits = _logits(model, batch.input_ids, batch.attention_mask, places)
        logs = logits.float().log_softmax(-1).cpu()
    if not torch.isfinite(logs.amax(-1)).all():
        raise ValueError(
            "a probability at the end of a message is not finite: the model's weights are broken"
        )
    return [
        {place: float(logs[index, column[place - 1], row.input_ids[place]]) for place in row.ends}
        for index, row in enumerate(rows)
    ]


def _logits(
    model: "PreTrainedModel", ids: "torch.Tensor", mask: "torch.Tensor", places: list[int]
) -> "torch.Tensor":
    """Logits [rows, places, vocabulary]; only these are made where the model can do that."""
    import torch

    wanted = torch.tensor(places, device=ids.device)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=wanted).logits
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, wanted]
