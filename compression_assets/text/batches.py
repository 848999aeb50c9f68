"""Grouping token rows into padded batches. Losses and metrics read a `Batch`; nothing here knows a model."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression_assets.text.datasets import TokenDataset, TokenRow

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: `input_ids` and `attention_mask` int64 [B, L], `predicts` bool [B, L].

    `predicts[b, t]` is true iff token t+1 of row b exists and is content (or, for training, ends a message), so that
    the logits at position t take part in a metric or loss with target `input_ids[b, t + 1]`.
    """

    input_ids: "torch.Tensor"
    attention_mask: "torch.Tensor"
    predicts: "torch.Tensor"

    def to(self, device: "str | torch.device") -> "Batch":
        """The same batch on another device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.predicts.to(device))

    def targets(self) -> "torch.Tensor":
        """Ids to predict [N], in the order of `hidden[predicts]`."""
        return self.input_ids[:, 1:][self.predicts[:, :-1]]


def length_buckets(dataset: TokenDataset, batch_size: int, seed: int | None) -> list[list[int]]:
    """Row indices in batches of rows of similar length, each row once.

    With a seed, rows of equal length and the batches are shuffled by it. Without, batches come
    longest first, so that a batch that does not fit in memory fails at once.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    order = list(range(len(dataset)))
    shuffler = random.Random(seed)
    if seed is not None:
        shuffler.shuffle(order)
    order.sort(key=lambda index: -len(dataset[index].input_ids))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if seed is not None:
        shuffler.shuffle(batches)
    return batches


def collate(rows: Sequence[TokenRow], pad_id: int, trained: bool = False) -> Batch:
    """Pad rows on the right with `pad_id` into one `Batch` on the CPU; it predicts content, or all that is trained."""
    import torch

    longest = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    predicts = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[index, :length] = torch.tensor(row.input_ids, dtype=torch.int64)
        attention_mask[index, :length] = 1
        wanted = row.trained if trained else row.content
        predicts[index, : max(length - 1, 0)] = torch.tensor(wanted[1:], dtype=torch.bool)
    return Batch(input_ids, attention_mask, predicts)
