"""A model as it was loaded from somebody's files, held against the directory that was written of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TOKENS = 16
TOLERANCE = 1e-3
"""Of the largest logit. The same numbers in the same kernels: less would be a claim about kernels."""


@dataclass(frozen=True)
class Loaded:
    """What a directory has to give back. tensors: name -> (shape, dtype). tied: copy -> original.

    logits: fp32 [TOKENS, vocabulary] of tokens from all over the vocabulary, by the model's own forward pass.
    """

    tensors: dict[str, tuple[tuple[int, ...], str]]
    tied: dict[str, str]
    logits: "torch.Tensor"

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "Loaded":
        import torch

        from compression_assets.weights.checkpoints import stored_tensors

        vocabulary = model.get_input_embeddings().weight.shape[0]
        ids = torch.arange(TOKENS)[None] * vocabulary // TOKENS
        with torch.inference_mode():
            logits = model.eval()(input_ids=ids, use_cache=False).logits[0].float()
        tensors = {name: (tuple(t.shape), str(t.dtype)) for name, t in stored_tensors(model).items()}
        return cls(tensors, dict(model.all_tied_weights_keys), logits)

    def check(self, directory: Path, source: Path, dtype: "torch.dtype") -> None:
        """Load what was written; StudyError naming `source` where it is another model in anything that counts."""
        import torch

        from compression_assets.weights.checkpoints import load_for_scoring

        found = Loaded.of(load_for_scoring(directory, "cpu", dtype))
        largest = self.logits.abs().max().item()
        same = torch.allclose(found.logits, self.logits, rtol=0, atol=TOLERANCE * largest, equal_nan=True)
        differing = sorted(dict(found.tensors.items() ^ self.tensors.items()))
        for what, differs in (
            (f"the tensor {differing[0]} is another" if differing else "", bool(differing)),
            ("other weights are tied", found.tied != self.tied),
            ("its logits are others", not same),
        ):
            if differs:
                raise StudyError(
                    f"the model {source} does not survive being written ({what} when it is loaded again), so nothing "
                    "measured on it would be about it: use another checkpoint of it."
                )
