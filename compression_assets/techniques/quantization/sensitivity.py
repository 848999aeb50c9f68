"""How much each number format hurts each layer, measured: KL divergence when that layer alone is quantized.

What the layers of a mixture cost together is taken to be the sum of what each costs alone, which holds while all of it
is small; the sum is shown beside the measured whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from compression_assets.store.reports import Report, no_report
from compression_assets.techniques.quantization.mixture import Options
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.weights.formats.format import Format

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Divergence:
    """KL(model as it came || model as it is now), in nats a content token of some conversations.

    Predictions of the model as it came are kept: 4 bytes a content token and entry of the vocabulary.
    """

    def __init__(self, model: "PreTrainedModel", rows: Sequence[TokenRow]) -> None:
        self._model, self._rows = model.eval(), rows
        self._before = [self._predictions(row) for row in rows]
        self.tokens = sum(map(len, self._before))

    def now(self) -> float:
        total = 0.0
        for row, before in zip(self._rows, self._before, strict=True):
            after = self._predictions(row)
            total += (before.exp() * (before - after)).sum().item()
        return total / self.tokens

    def _predictions(self, row: TokenRow) -> "torch.Tensor":
        """Log-probabilities before each content token, fp32 [content tokens, vocabulary]."""
        import torch

        device = self._model.device
        with torch.inference_mode():
            ids = torch.tensor([row.input_ids], device=device)
            logits = self._model(input_ids=ids, use_cache=False).logits[0, :-1]
            return logits[torch.tensor(row.content[1:], device=device)].float().log_softmax(-1)


def sensitivities(
    model: "PreTrainedModel", divergence: Divergence, choice: Options, report: Report = no_report
) -> dict[str, dict[Format, float]]:
    """Unit -> format -> KL in nats a token when that unit alone is in that format, rounded to nearest."""
    found: dict[str, dict[Format, float]] = {}
    for done, unit in enumerate(choice.units, start=1):
        found[unit.name] = {}
        for form in unit.sizes:
            with stored_as(model, {weight.name: form for weight in unit.weights}):
                found[unit.name][form] = 0.0 if form.full_precision else divergence.now()
        report(done, len(choice.units), "sensitivities measured")
    return found


@contextmanager
def stored_as(model: "PreTrainedModel", forms: Mapping[str, Format]) -> Iterator[None]:
    """A model some of whose weights are what their formats store of them, while the block runs."""
    import torch

    before = {}
    with torch.no_grad():
        for name, form in forms.items():
            if form.full_precision:
                continue
            weight = model.get_parameter(name)
            before[name] = weight.detach().clone()
            weight.copy_(form.round_trip(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, own in before.items():
                model.get_parameter(name).copy_(own)


def first_rows(dataset: TokenDataset, tokens: int) -> list[TokenRow]:
    """The first conversations with at least so many predicted tokens; all, where there are fewer."""
    rows: list[TokenRow] = []
    for row in dataset:
        if sum(one.n_predicted for one in rows) >= tokens:
            break
        if row.n_predicted:
            rows.append(row)
    return rows
