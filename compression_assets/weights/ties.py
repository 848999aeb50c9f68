"""Tied weights in files: a copy that is stored beside its original has to be one."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    import torch


class Copies:
    """Compares tied weights with what they are copies of; of each pair the first one seen is kept until the other.

    tied: name of a copy -> name of its original. source: whose files they are, for the sentence.
    """

    def __init__(self, tied: Mapping[str, str], source: Path) -> None:
        self._tied, self._source = tied, source
        self._waiting: dict[str, torch.Tensor] = {}

    def see(self, name: str, tensor: "torch.Tensor") -> None:
        """StudyError where a copy differs from its original, whichever of the two comes second."""
        for copy_name, original in self._tied.items():
            if name not in (copy_name, original):
                continue
            other = self._waiting.pop(copy_name, None)
            if other is None:
                self._waiting[copy_name] = tensor
            elif not other.equal(tensor):
                raise StudyError(
                    f"{self._source} holds {copy_name}, which differs from {original} although its config.json says "
                    "tie_word_embeddings: set it to false, which is what transformers computes with"
                )
