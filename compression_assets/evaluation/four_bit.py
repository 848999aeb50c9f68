"""How far a quantized model's own forward pass is from the dequantized weights that it is scored through."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.evaluation.rows import SCORE, MetricRow
from compression_assets.store.reports import Check

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CHECK = "agrees_with_four_bit"
LEAST_COSINE = 0.99
PROMPTS = 3
POSITIONS = 64
"""Last positions of each prompt whose logits are compared."""


@dataclass(frozen=True)
class Agreement:
    """logit_cosine: mean cosine of the two logit vectors over `positions`. top_1: share with the same likeliest token.

    Both None where this device's kernels cannot run the model's shapes; `reason` says so.
    """

    logit_cosine: float | None
    top_1: float | None
    positions: int
    reason: str = ""

    def check(self) -> Check:
        """A warning where the quantized model is not the one that was scored, or could not be compared with it."""
        if self.logit_cosine is None or self.top_1 is None:
            return Check(CHECK, False, f"not compared: {self.reason}", blocking=False)
        detail = f"cosine {self.logit_cosine:.4f}, same first token at {self.top_1:.1%} of {self.positions} positions"
        return Check(CHECK, self.logit_cosine >= LEAST_COSINE, detail, blocking=False)

    def rows(self) -> list[MetricRow]:
        return [
            MetricRow(name, value, SCORE, self.positions, higher_is_better=True, note=self.reason)
            for name, value in (
                ("four_bit_logit_cosine", self.logit_cosine),
                ("four_bit_top_1", self.top_1),
            )
        ]


def compare_with_four_bit(
    model: "PreTrainedModel", directory: Path, prompts: Sequence[list[int]], device: str
) -> Agreement:
    """Compare `model`, the dequantized form of a directory, with that directory loaded as any user loads it."""
    from torch.nn.functional import cosine_similarity

    from compression_assets.weights.first_answer import cannot_run, load_as_user

    if reason := cannot_run(directory, model, device.partition(":")[0]):
        return Agreement(None, None, 0, reason)
    expected = _logits(model, prompts)
    actual = _logits(load_as_user(directory, device), prompts)
    return Agreement(
        logit_cosine=cosine_similarity(expected, actual, dim=-1).mean().item(),
        top_1=(expected.argmax(-1) == actual.argmax(-1)).double().mean().item(),
        positions=len(expected),
    )


def _logits(model: "PreTrainedModel", prompts: Sequence[list[int]]) -> "torch.Tensor":
    """Logits [positions, vocabulary] at the end of the first few prompts, float32 on the CPU."""
    import torch

    with torch.inference_mode():
        found = [
            model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False).logits[
                0, -POSITIONS:
            ]
            for prompt in prompts[:PROMPTS]
        ]
    return torch.cat(found).float().cpu()
