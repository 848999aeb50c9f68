"""Importance by the loss on the calibration set: how much it changes without a unit.

To first order for units of which there are many (Molchanov et al. 2019, arXiv 1906.10771): a unit that contributes x is
taken away by x -> 0, which changes the loss by about -x · dL/dx. Layers are few, and each is left out in turn.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from compression_assets.errors import StudyError
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.weights.layers import decoder_layers

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Tap:
    """Where units show: the numbers that a module is given or gives. by_unit: their sums [n] -> those of units."""

    module: "Module"
    side: Literal["input", "output"]
    by_unit: "Callable[[torch.Tensor], torch.Tensor]" = lambda values: values


def loss_changes(
    model: "PreTrainedModel", dataset: TokenDataset, groups: Sequence[Sequence[Tap]]
) -> "list[torch.Tensor]":
    """|Σ x · dL/dx| of every unit in each conversation, summed, in nats a content token: fp64 [units] for each group.

    groups: taps of the same units. The sum over tokens, and over the taps of a group, comes before the magnitude.
    Raises StudyError when the data has no content, or changes are all zero or not finite.
    """

    now: list[Any] = [0.0] * len(groups)
    totals: list[Any] = [0.0] * len(groups)

    def listen(group: int, tap: Tap, values: "torch.Tensor") -> None:
        def add(gradient: "torch.Tensor") -> None:
            change = (values.detach().float() * gradient.float()).reshape(-1, values.shape[-1]).sum(0)
            now[group] = now[group] + tap.by_unit(change)

        values.register_hook(add)

    def hook(group: int, tap: Tap) -> Any:
        if tap.side == "input":
            return tap.module.register_forward_pre_hook(lambda _, args: listen(group, tap, args[0]))
        return tap.module.register_forward_hook(lambda _, _args, output: listen(group, tap, output))

    rows = _rows(dataset)
    model.requires_grad_(False)
    # Gradients of activations alone: they begin behind the embeddings.
    model.enable_input_require_grads()
    hooks = [hook(group, tap) for group, taps in enumerate(groups) for tap in taps]
    try:
        for row in rows:
            now[:] = [0.0] * len(groups)
            _loss(model, row).backward()
            totals = [total + one.abs().double().cpu() for total, one in zip(totals, now, strict=True)]
    finally:
        for one in hooks:
            one.remove()
        model.disable_input_require_grads()
    for index, total in enumerate(totals):
        if not (total.isfinite().all() and total.max() > 0):
            raise StudyError(
                f"the changes of the loss in group {index} of what P cuts are all zero or not finite; "
                "build the parent model again"
            )
    return [total / sum(row.n_predicted for row in rows) for total in totals]


def losses_without_layers(model: "PreTrainedModel", dataset: TokenDataset) -> "torch.Tensor":
    """Loss in nats a content token without each layer, fp64 [layers]. Raises StudyError when there is no content."""
    import torch

    rows, found = _rows(dataset), []
    for layer in decoder_layers(model).values():
        with passed_by([layer]), torch.inference_mode():
            found.append(sum(_loss(model, row).item() for row in rows))
    return torch.tensor(found, dtype=torch.float64) / sum(row.n_predicted for row in rows)


@contextmanager
def passed_by(layers: "Iterable[Module]") -> Iterator[None]:
    """Let hidden states pass these decoder layers by, unchanged, while the block runs."""

    def pass_by(_module: Any, inputs: Any, others: Any, output: Any) -> Any:
        hidden = inputs[0] if inputs else others["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hooks = [layer.register_forward_hook(pass_by, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def mean_loss(model: "PreTrainedModel", dataset: TokenDataset) -> float:
    """Loss in nats a content token. Raises StudyError when there is no content."""
    import torch

    rows = _rows(dataset)
    with torch.inference_mode():
        return sum(_loss(model, row).item() for row in rows) / sum(row.n_predicted for row in rows)


def _rows(dataset: TokenDataset) -> list[TokenRow]:
    rows = [row for row in dataset if row.n_predicted]
    if not rows:
        raise StudyError("the calibration set has no content tokens; ask for more calibration conversations")
    return rows


def _loss(model: "PreTrainedModel", row: TokenRow) -> "torch.Tensor":
    """Sum over the content tokens of a conversation, in nats."""
    import torch

    ids = torch.tensor([row.input_ids], device=model.device)
    content = torch.tensor(row.content[1:], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1][content].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:][content], reduction="sum")
