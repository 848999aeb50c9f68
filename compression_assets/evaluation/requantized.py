"""A trained model as each way of rounding would leave it: scored in memory, without writing a checkpoint for each.

What is scored is what the checkpoint would decode to. Which trainings are measured is not decided here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.evaluation.perplexity import PerplexityResult, score
from compression_assets.evaluation.survival import (
    Survival,
    Update,
    measure_survival,
    measure_update,
    survival_of_change,
)
from compression_assets.machine.precision import compute_dtype
from compression_assets.techniques.quantization.calibrated import quantize_by_output
from compression_assets.techniques.quantization.rounding import Rounding, quantize
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.files import read_tensors
from compression_assets.weights.formats import nf4
from compression_assets.weights.formats.format import Stored
from compression_assets.weights.formats.grid import GridFormat
from compression_assets.weights.layers import linear_weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Start:
    """Where a training begins: every linear weight in full precision, and as it is or would be quantized.

    on_grid: the weights are what `grid` decodes to; else nearest rounding has made `grid` of them.
    """

    origin: "Mapping[str, torch.Tensor]"
    grid: Mapping[str, Stored]
    on_grid: bool


def start_of(directory: Path, quantized: Path | None) -> Start:
    """The start in a model directory. quantized: the NF4 directory that it was dequantized from, if it was."""
    if quantized is not None:
        grid = {weight.name: weight.parts for weight in checkpoints.quantized_weights(quantized)}
        return Start({name: nf4.dequantize(parts) for name, parts in grid.items()}, grid, on_grid=True)
    linear = linear_weights(checkpoints.empty_model(checkpoints.read_config(directory)))
    weights = read_tensors(checkpoints.masters_or_published(directory))
    origin = {name: weight.float() for name, weight in weights if name in linear}
    return Start(origin, {name: nf4.quantize(weight) for name, weight in origin.items()}, on_grid=False)


class Scorer:
    """One trained model directory, scored on one data set as it is and as roundings would leave it."""

    def __init__(
        self,
        trained: Path,
        start: Start,
        dataset: TokenDataset,
        batch_size: int,
        device: str = "cpu",
        calibration: TokenDataset | None = None,
    ) -> None:
        """calibration: what the rounding "gptq" looks at."""
        self._trained, self._start, self._dataset, self._batch_size = trained, start, dataset, batch_size
        self._calibration, self._device = calibration, device
        self._updates: dict[str, Update] = {}
        self._model = checkpoints.load_for_scoring(trained, device, compute_dtype(device))
        if device == "cpu":
            # As in `measure_perplexity`: its rounding does not depend on who else is in the batch.
            self._model.set_attn_implementation("eager")

    def as_it_is(self) -> PerplexityResult:
        """Score the published weights; only before any rounding."""
        return score(self._model, self._dataset, self._batch_size)

    def rounded(self, rounding: Rounding, keep_absmax: bool) -> tuple[PerplexityResult, dict[str, Survival]]:
        """Score the model that a rounding of its masters gives, and compare every linear weight with the start."""
        import torch

        survival, kept = {}, self._start.grid if keep_absmax else {}
        by_output: Mapping[str, Stored] = {}
        if rounding.kind == "gptq":
            assert isinstance(rounding.form, GridFormat)
            by_output = quantize_by_output(
                self._trained, self._calibration, rounding.form, kept, self._device
            ).parts
        with torch.no_grad():
            for name, weight in self._masters():
                stored = by_output.get(name) or quantize(weight, rounding, name, kept.get(name))
                survival[name] = measure_survival(self._update(name, weight), stored)
                self._model.get_parameter(name).copy_(nf4.dequantize(stored))
        return score(self._model, self._dataset, self._batch_size), survival

    def apart(self, rank: int) -> tuple[PerplexityResult, dict[str, Survival], int]:
        """Score the start's quantized weights with the update's best approximation of a rank, kept in bf16 beside them.

        Also the bytes that this takes. Exact for adapters of that rank; of other training it is what rank keeps.
        """
        import torch

        survival, kept_bytes = {}, 0
        with torch.no_grad():
            for name, weight in self._masters():
                update, grid = self._update(name, weight), self._start.grid[name]
                left, right = low_rank_factors(update.values, rank)
                change = left.float() @ right.float()
                kept_bytes += 2 * (left.numel() + right.numel())
                survival[name] = survival_of_change(update, change, codes_changed=0.0)
                self._model.get_parameter(name).copy_(nf4.dequantize(grid) + change)
        return score(self._model, self._dataset, self._batch_size), survival, kept_bytes

    def _update(self, name: str, weight: "torch.Tensor") -> Update:
        if name not in self._updates:
            start = self._start
            self._updates[name] = measure_update(start.origin[name], start.grid[name], weight, start.on_grid)
        return self._updates[name]

    def _masters(self) -> "Iterator[tuple[str, torch.Tensor]]":
        linear = linear_weights(self._model)
        for name, weight in read_tensors(checkpoints.masters_or_published(self._trained)):
            if name in linear:
                yield name, weight


def low_rank_factors(matrix: "torch.Tensor", rank: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """bf16 [out, rank] and [rank, in] whose product is the best approximation of a matrix (truncated SVD)."""
    import torch

    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    root = sizes[:rank].sqrt()
    return (left[:, :rank] * root).bfloat16(), (root[:, None] * right[:rank]).bfloat16()
