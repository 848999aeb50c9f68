"""Forward passes over the calibration set, for whoever measures importance in them."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.text.batches import collate, length_buckets
from compression_assets.text.datasets import TokenDataset

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from transformers import PreTrainedModel


class Calibration:
    """A calibration set in batches; template and padding do not count.

    Raises StudyError when the set has no content tokens.
    """

    def __init__(self, dataset: TokenDataset, batch_size: int, device: str) -> None:
        self.tokens = sum(sum(row.content) for row in dataset)
        if not self.tokens:
            raise StudyError(
                "the calibration set has no content tokens; ask for more calibration conversations"
            )
        self._dataset, self._batch_size, self._device = dataset, batch_size, device
        self._content: torch.Tensor | None = None

    def content(self, values: "torch.Tensor") -> "torch.Tensor":
        """[content tokens, n] of what a module was given or gave, [B, L, n], in the pass that runs now."""
        assert self._content is not None
        # Some models (OPT) run their blocks on all tokens in one dimension.
        return values.reshape(*self._content.shape, -1)[self._content]

    def run(self, model: "PreTrainedModel") -> None:
        """Every row once through a model."""
        import torch

        with torch.inference_mode():
            for indices in length_buckets(self._dataset, self._batch_size, seed=None):
                rows = [self._dataset[index] for index in indices]
                batch = collate(rows, pad_id=0).to(self._device)
                self._content = _content_mask([row.content for row in rows]).to(self._device)
                model.base_model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                )

    def mean_magnitudes(
        self, model: "PreTrainedModel", seen: "Mapping[Module, Callable[[Any, Any], torch.Tensor]]"
    ) -> "list[torch.Tensor]":
        """Mean |value| over content tokens for each module, fp64 [n] on the CPU.

        seen: module -> (its inputs, its output) -> values [B, L, n].
        """
        sums: list[Any] = [0.0] * len(seen)

        def listen(place: int, values: Any) -> Any:
            def add(_module: Any, inputs: Any, output: Any) -> None:
                # fp32 within a batch, fp64 across batches: bf16 sums would depend on the batch size.
                sums[place] += self.content(values(inputs, output)).float().abs().sum(0).double().cpu()

            return add

        hooks = [
            module.register_forward_hook(listen(place, values))
            for place, (module, values) in enumerate(seen.items())
        ]
        try:
            self.run(model)
        finally:
            for hook in hooks:
                hook.remove()
        return [total / self.tokens for total in sums]


def _content_mask(rows: list[list[bool]]) -> "torch.Tensor":
    """Content flags padded on the right, bool [B, L]. `Batch.predicts` would lose a row's first token."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([row + [False] * (longest - len(row)) for row in rows])
