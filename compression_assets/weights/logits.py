"""What a causal language model does between its last hidden states and its logits.

Most apply their output layer and nothing else, so that logits can be made of some positions only. Granite divides them,
Cohere scales them, Gemma 2 caps them: there only the model's own forward pass says what the logits are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    import torch
    from torch.nn import Module
    from transformers import PreTrainedModel

TOKENS = 4
PLANTED_UP_TO = 200.0
"""Far beyond any cap on logits, so that one shows whatever the weights are."""


def body_and_head(model: "PreTrainedModel") -> "tuple[torch.nn.Module, torch.nn.Linear]":
    """The part of a causal language model that makes hidden states and the linear layer that makes logits of them.

    StudyError if logits are anything but that layer applied to those states (soft-capped or scaled logits).
    """
    training = model.training
    same = head_makes_logits(model.eval())
    model.train(training)
    if not same:
        raise StudyError(
            f"{type(model).__name__} does more than a linear layer between its last hidden states and its logits, "
            "which the chunked loss cannot reproduce: choose a Llama- or Qwen2-type model."
        )
    return model.base_model, model.get_output_embeddings()


def head_makes_logits(model: "PreTrainedModel") -> bool:
    """Whether a model's logits are its output layer applied to `base_model`'s last hidden states, and nothing else.

    Told by numbers, not by names: hidden states and logits of known values are planted in place of what the body and
    the output layer return, and have to arrive unchanged. That needs no weights, so a model on the meta device will do;
    one that has weights also has to give the same logits on a few tokens both ways.
    """
    import torch
    from torch.nn import Linear

    head = model.get_output_embeddings()
    if not isinstance(head, Linear):
        return False
    with torch.no_grad():
        return _passes_planted(model, head) and (head.weight.is_meta or _agrees(model, head))


def _passes_planted(model: "PreTrainedModel", head: Any) -> bool:
    import torch

    device = "cpu" if head.weight.is_meta else head.weight.device
    logits = torch.linspace(-PLANTED_UP_TO, PLANTED_UP_TO, TOKENS * head.out_features, device=device)
    logits = logits.view(1, TOKENS, head.out_features)
    hidden = torch.linspace(-1, 1, TOKENS * head.in_features, device=device).view(1, TOKENS, head.in_features)
    seen: list[torch.Tensor] = []

    def read(states: "torch.Tensor", *_: Any, **__: Any) -> "torch.Tensor":
        seen.append(states)
        return logits

    output = _output(hidden)
    bodies = {id(body): body for body in (model.base_model, model.get_decoder())}.values()
    with _replaced([(head, read), *((body, lambda *_, **__: output) for body in bodies)]):
        found = model(input_ids=_tokens(head), use_cache=False).logits
    return len(seen) == 1 and torch.equal(seen[0], hidden) and torch.equal(found, logits)


def _agrees(model: "PreTrainedModel", head: Any) -> bool:
    """NaN counts as equal: broken weights are for whoever scores or trains them to report."""
    import torch

    ids = _tokens(head)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    expected = model(input_ids=ids, use_cache=False).logits.float()
    return torch.allclose(head(hidden).float(), expected, rtol=1e-2, atol=1e-2, equal_nan=True)


def _tokens(head: Any) -> "torch.Tensor":
    import torch

    return torch.arange(TOKENS, device=head.weight.device)[None]


@contextmanager
def _replaced(forwards: "list[tuple[Module, Any]]") -> Iterator[None]:
    """Modules with another forward while the block runs."""
    before = [module.__dict__.get("forward") for module, _ in forwards]
    for module, forward in forwards:
        module.forward = forward
    try:
        yield
    finally:
        for (module, _), own in zip(forwards, before, strict=True):
            del module.forward
            if own is not None:
                module.forward = own


def _output(hidden: "torch.Tensor") -> Any:
    """What any body may return: models ask it for different fields besides the hidden states."""
    from transformers.modeling_outputs import MoEModelOutputWithPastAndCrossAttentions

    output = MoEModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)
    output.cache_params = None  # of models without attention, as Mamba
    return output
