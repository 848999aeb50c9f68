"""One pass over a fixed set of conversations: perplexity of content, distance to the base, ends of messages.

Precision policy, the same for every model: weights in the compute dtype (bfloat16 where the device
computes it natively), log-probabilities in float32, sums in float64. An NF4 model is scored through
its exactly dequantized weights, which is what the 4-bit kernels compute with on a GPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.evaluation.distance import Distance, distances
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.store.reports import Report, no_report

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from compression_assets.text.batches import Batch
    from compression_assets.text.datasets import TokenDataset

HEAD_ROWS = 1024
"""Positions whose [rows, vocabulary] logits are held at once."""


@dataclass(frozen=True)
class PerplexityResult:
    """Negative log-likelihoods (nats) by conversation: `nll[i]` summed over `tokens[i]` predicted tokens.

    ends: by conversation, the log-probability (nats) of each of its tokens that end a message, in their order.
    states: by conversation, the last hidden states [n_trained, d] at the tokens that predict these; None for a model
    whose logits are not its output layer's alone. distance: to the base's predictions, where there was a base.
    """

    ids: list[str]
    nll: list[float]
    tokens: list[int]
    vocabulary: int
    ends: list[list[float]]
    states: "list[torch.Tensor] | None" = None
    distance: Distance | None = None

    @property
    def perplexity(self) -> float:
        """exp(sum of NLL / number of predicted content tokens): weighted by token, not by conversation."""
        return math.exp(math.fsum(self.nll) / sum(self.tokens))

    def rows(self) -> list[MetricRow]:
        n = sum(self.tokens)
        return [
            MetricRow("perplexity", self.perplexity, "1", n, higher_is_better=False, aggregate="exp_mean")
        ]

    def samples(self) -> list[Sample]:
        """Per conversation: value is the summed NLL in nats, weight its predicted tokens."""
        return [
            Sample("perplexity", item, nll, tokens)
            for item, nll, tokens in zip(self.ids, self.nll, self.tokens, strict=True)
        ]


def measure_perplexity(
    model_dir: Path,
    dataset: "TokenDataset",
    batch_size: int = 8,
    device: str = "cpu",
    report: Report = no_report,
) -> PerplexityResult:
    """Score a model directory (16-bit or NF4) on the content tokens of `dataset`.

    Raises ValueError when a log-likelihood is not finite or a token lies outside the model's vocabulary.
    """
    return score(load_scored(model_dir, device), dataset, batch_size, report)


def load_scored(model_dir: Path, device: str) -> "PreTrainedModel":
    """A model directory as it is scored."""
    from compression_assets.machine.precision import compute_dtype
    from compression_assets.weights.checkpoints import load_for_scoring

    model = load_for_scoring(model_dir, device, compute_dtype(device))
    if device == "cpu":
        # In bfloat16 on a CPU the fused kernel's rounding depends on who else is in the batch; this one's does not.
        model.set_attn_implementation("eager")
    return model


def score(
    model: "PreTrainedModel",
    dataset: "TokenDataset",
    batch_size: int,
    report: Report = no_report,
    base: "PreTrainedModel | None" = None,
    base_states: "list[torch.Tensor] | None" = None,
) -> PerplexityResult:
    """Negative log-likelihood of each row's content tokens, and of those that end its messages, under a loaded model.

    Logits are what `model(...)` says they are; where the output layer alone makes them, at these tokens only.
    base: a model that the predictions are compared with in the same pass; it may be `model` itself. base_states: what
    its own pass over the same data set left (`PerplexityResult.states`), so that it needs none here.
    Raises ValueError when a log-likelihood is not finite.
    """
    import torch

    from compression_assets.text.batches import collate, length_buckets
    from compression_assets.weights.logits import head_makes_logits

    sums = torch.zeros(1 if base is None else 3, len(dataset.rows), dtype=torch.float64)
    ends: list[list[float]] = [[] for _ in dataset]
    states: dict[int, torch.Tensor] = {}
    done = 0
    model.eval()
    # Of both or of neither, so that their logits come in the same chunks.
    head_alone = head_makes_logits(model) and (base is None or base is model or head_makes_logits(base))
    with torch.inference_mode():
        for indices in length_buckets(dataset, batch_size, seed=None):
            batch = collate([dataset.rows[i] for i in indices], pad_id=0, trained=True)
            counts = [dataset.rows[i].n_trained for i in indices]
            known = torch.cat([base_states[i] for i in indices]) if base_states else None
            figures, hidden = _token_figures(model, base, batch, head_alone, known)
            if hidden is not None:
                states |= zip(indices, hidden.cpu().split(counts), strict=True)
            for index, by_token in zip(indices, figures.split(counts, dim=1), strict=True):
                row = dataset.rows[index]
                if not by_token.isfinite().all():
                    raise ValueError(
                        f"the log-likelihood of conversation {row.id} is not finite: the model's weights are broken"
                    )
                flags = [row.content[place] for place in range(1, len(row.content)) if row.trained[place]]
                content = torch.tensor(flags, dtype=torch.bool)
                sums[:, index] = by_token[:, content].sum(1)
                ends[index] = (-by_token[0, ~content]).tolist()
                done += row.n_predicted
            report(done, dataset.n_predicted, "scoring")
    ids, tokens = [row.id for row in dataset.rows], [row.n_predicted for row in dataset.rows]
    nll, *compared = sums.tolist()
    distance = None
    if compared:
        kl, agreed = compared
        distance = Distance(ids, kl, agreed, tokens)
    return PerplexityResult(
        ids=ids,
        nll=nll,
        tokens=tokens,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        ends=ends,
        states=[states[i] for i in range(len(dataset))] if head_alone else None,
        distance=distance,
    )


def _token_figures(
    model: "PreTrainedModel",
    base: "PreTrainedModel | None",
    batch: "Batch",
    head_alone: bool,
    base_states: "torch.Tensor | None",
) -> "tuple[torch.Tensor, torch.Tensor | None]":
    """Of the N predicted tokens, in row-major order: float64 [1 or 3, N] on the CPU, and the model's states [N, d].

    The loss in nats; with a base also the KL from it, and 1 where the likeliest token is the same.
    """
    import torch
    from torch.nn.functional import cross_entropy

    targets, batch = batch.targets().to(model.device), batch.to(model.device)
    states = _states(model, batch) if head_alone else None
    theirs: Iterator[torch.Tensor | None] = repeat(None)
    if base is not None and base is not model:
        if head_alone:
            base_states = _states(base, batch) if base_states is None else base_states.to(model.device)
        theirs = _logits(base, batch, base_states if head_alone else None)
    parts, start = [], 0
    for logits, of_base in zip(_logits(model, batch, states), theirs, strict=False):
        ids = targets[start : start + len(logits)]
        figures = [cross_entropy(logits.float(), ids, reduction="none")]
        if base is not None:
            figures += distances(logits if of_base is None else of_base, logits)
        parts.append(torch.stack([figure.double() for figure in figures]))
        start += len(logits)
    return torch.cat(parts, dim=1).cpu(), states


def _states(model: "PreTrainedModel", batch: "Batch") -> "torch.Tensor":
    """The last hidden states [N, d] at the positions that `batch` predicts from, in row-major order."""
    states: torch.Tensor = model.base_model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state[batch.predicts]
    return states


def _logits(
    model: "PreTrainedModel", batch: "Batch", states: "torch.Tensor | None"
) -> "Iterator[torch.Tensor]":
    """Logits [n, vocabulary] at the positions that `batch` predicts from, in row-major order, n at most HEAD_ROWS.

    states: of these positions, where the output layer alone makes their logits.
    """
    if states is not None:
        yield from map(model.get_output_embeddings(), states.split(HEAD_ROWS))
        return
    # Its own forward pass makes the logits of every position, so it sees as few rows at once as have HEAD_ROWS.
    at_once = max(1, HEAD_ROWS // batch.input_ids.shape[1])
    parts = (part.split(at_once) for part in (batch.input_ids, batch.attention_mask, batch.predicts))
    for ids, mask, predicts in zip(*parts, strict=True):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        yield from logits[predicts].split(HEAD_ROWS)
