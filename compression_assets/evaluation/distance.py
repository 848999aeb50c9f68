"""How far a model's predictions are from the base's: perplexity can stay where it is while they drift.

arXiv 2601.20088 reports that of quantization-aware training. Whole next-token distributions are compared, on the
content tokens of the evaluation set.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression_assets.evaluation.rows import SCORE, MetricRow, Sample

if TYPE_CHECKING:
    import torch

KL, TOP_1 = "kl_to_base", "top_1_agreement"


@dataclass(frozen=True)
class Distance:
    """By conversation, summed over `tokens[i]` predicted tokens.

    kl: KL(base || model) in nats. agreed: tokens where both find the same one likeliest.
    """

    ids: list[str]
    kl: list[float]
    agreed: list[float]
    tokens: list[int]

    def rows(self) -> list[MetricRow]:
        n = sum(self.tokens)
        return [
            MetricRow(KL, math.fsum(self.kl) / n, "nats", n, higher_is_better=False),
            MetricRow(TOP_1, math.fsum(self.agreed) / n, SCORE, n, higher_is_better=True),
        ]

    def samples(self) -> list[Sample]:
        """Per conversation and metric: the sum, and as weight the predicted tokens."""
        return [
            Sample(metric, item, value, tokens)
            for metric, values in ((KL, self.kl), (TOP_1, self.agreed))
            for item, value, tokens in zip(self.ids, values, self.tokens, strict=True)
        ]


def no_distance(reason: str) -> list[MetricRow]:
    """The rows of a model that cannot be compared."""
    return [
        MetricRow(KL, None, "nats", 0, higher_is_better=False, note=reason),
        MetricRow(TOP_1, None, SCORE, 0, higher_is_better=True, note=reason),
    ]


def distances(base: "torch.Tensor", model: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """KL(base || model) in nats, fp32 [n], and whether the likeliest token is the same, bool [n].

    base, model: logits [n, vocabulary]. Ids that only one of them has stand for no text (a vocabulary's padding) and
    are left out.
    """
    shared = min(base.shape[-1], model.shape[-1])
    p, q = (logits[:, :shared].float().log_softmax(-1) for logits in (base, model))
    return (p.exp() * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)
