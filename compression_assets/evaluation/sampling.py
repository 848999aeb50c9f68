"""Choosing the next token of each row: the likeliest, or one drawn from the row's own stream of random numbers."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Chooser:
    """Chooses for the rows of one batch. A row's stream depends on `seed` and its prompt, not on its neighbours."""

    def __init__(self, prompts: Sequence[Sequence[int]], temperature: float, seed: int):
        import torch

        self.temperature = temperature
        self._streams = []
        for prompt in prompts if temperature > 0 else ():
            digest = hashlib.sha256(f"{seed}:{list(prompt)}".encode()).digest()
            self._streams.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1))

    def __call__(self, logits: "torch.Tensor", rows: Sequence[int]) -> list[int]:
        """Next tokens for logits [len(rows), vocabulary]; rows are their places in the batch.

        ValueError when a logit is NaN or infinite: an argmax over those would be some token all the same.
        """
        import torch

        if not logits.isfinite().all():
            raise ValueError("a logit is not finite: the model's weights are broken")
        if self.temperature == 0:
            return logits.argmax(dim=-1).tolist()
        cumulated = torch.softmax(logits.double() / self.temperature, dim=-1).cumsum(dim=-1)
        drawn = torch.stack(
            [torch.rand(1, generator=self._streams[row], dtype=torch.float64) for row in rows]
        )
        # The last sum may be a rounding error below 1.
        places = torch.searchsorted(cumulated, drawn.to(cumulated.device) * cumulated[:, -1:], right=True)
        return places.clamp(max=logits.shape[-1] - 1)[:, 0].tolist()

    def processor(self, row: int) -> "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]":
        """The same choice for one row as a logits processor: all but the chosen token get -inf."""

        def only_the_chosen(_: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
            chosen = self(scores, [row])[0]
            scores = scores.new_full(scores.shape, float("-inf"))
            scores[:, chosen] = 0
            return scores

        return only_the_chosen
