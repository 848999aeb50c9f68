"""Perplexity of message content over a fixed set of conversations.

Precision policy, the same for every model: weights in the compute dtype (bfloat16 where the device
computes it natively), log-probabilities in float32, sums in float64. An NF4 model is scored through
its exactly dequantized weights, which is what the 4-bit kernels compute with on a GPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Negative log-likelihoods (nats) by conversation: `nll[i]` summed over `tokens[i]` predicted tokens."""

    ids: list[str]
    nll: list[float]
    tokens: list[int]
    vocabulary: int

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
    from compression_assets.machine.precision import compute_dtype
    from compression_assets.weights.checkpoints import load_for_scoring

    model = load_for_scoring(model_dir, device, compute_dtype(device))
    if device == "cpu":
        # In bfloat16 on a CPU the fused kernel's rounding depends on who else is in the batch; this one's does not.
        model.set_attn_implementation("eager")
    return score(model, dataset, batch_size, report)


def score(
    model: "PreTrainedModel", dataset: "TokenDataset", batch_size: int, report: Report = no_report
) -> PerplexityResult:
    """Negative log-likelihood of each row's content tokens under a loaded causal language model.

    Logits are what `model(...)` says they are; where the output layer alone makes them, at content positions only.
    """
    import torch

    from compression_assets.text.batches import collate, length_buckets
    from compression_assets.weights.logits import head_makes_logits

    nll = [0.0] * len(dataset.rows)
    done = 0
    model.eval()
    head_alone = head_makes_logits(model)
    with torch.inference_mode():
        for indices in length_buckets(dataset, batch_size, seed=None):
            batch = collate([dataset.rows[i] for i in indices], pad_id=0)
            losses = _token_losses(model, batch, head_alone)
            rows = batch.predicts.nonzero()[:, 0]
            sums = torch.zeros(len(indices), dtype=torch.float64).index_add_(0, rows, losses)
            for index, value in zip(indices, sums.tolist(), strict=True):
                nll[index] = value
            done += len(losses)
            report(done, dataset.n_predicted, "scoring")
    if not all(map(math.isfinite, nll)):
        bad = next(row.id for row, value in zip(dataset.rows, nll, strict=True) if not math.isfinite(value))
        raise ValueError(
            f"the log-likelihood of conversation {bad} is not finite: the model's weights are broken"
        )
    return PerplexityResult(
        ids=[row.id for row in dataset.rows],
        nll=nll,
        tokens=[sum(row.content[1:]) for row in dataset.rows],
        vocabulary=model.get_output_embeddings().weight.shape[0],
    )


def _token_losses(model: "PreTrainedModel", batch: "Batch", head_alone: bool) -> "torch.Tensor":
    """Losses in nats of the N predicted content tokens, [N] float64 on the CPU, in row-major order."""
    import torch
    from torch.nn.functional import cross_entropy

    targets = batch.targets().to(model.device)
    losses, start = [], 0
    for logits in _predicting_logits(model, batch.to(model.device), head_alone):
        ids = targets[start : start + len(logits)]
        losses.append(cross_entropy(logits.float(), ids, reduction="none"))
        start += len(logits)
    return torch.cat(losses).double().cpu()


def _predicting_logits(
    model: "PreTrainedModel", batch: "Batch", head_alone: bool
) -> "Iterator[torch.Tensor]":
    """Logits [n, vocabulary] at the positions that predict content, in row-major order, n at most HEAD_ROWS."""
    if head_alone:
        hidden = model.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state[batch.predicts]
        yield from map(model.get_output_embeddings(), hidden.split(HEAD_ROWS))
        return
    # Its own forward pass makes the logits of every position, so it sees as few rows at once as have HEAD_ROWS.
    at_once = max(1, HEAD_ROWS // batch.input_ids.shape[1])
    parts = (part.split(at_once) for part in (batch.input_ids, batch.attention_mask, batch.predicts))
    for ids, mask, predicts in zip(*parts, strict=True):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        yield from logits[predicts].split(HEAD_ROWS)
