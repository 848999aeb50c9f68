"""A training kept beside the codes that it started from, as adapters are, instead of being rounded into new ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.evaluation.perplexity import score
from compression_assets.evaluation.survival import measure_update, survival_of_change, total
from compression_assets.machine.precision import compute_dtype
from compression_assets.text.datasets import TokenDataset
from compression_assets.weights import checkpoints
from compression_assets.weights.files import read_tensors
from compression_assets.weights.formats import nf4

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Apart:
    """perplexity: with the update beside the codes. surviving: its share that the rank holds. bytes: what it takes."""

    perplexity: float
    surviving: float | None
    bytes: int


def apart(quantized: Path, trained: Path, dataset: TokenDataset, batch_size: int, rank: int) -> Apart:
    """Score the NF4 model `quantized` with a training's update of every linear weight beside it, in bfloat16.

    trained: full-precision directory of what was trained from the dequantized model. rank: of the best approximation
    (truncated SVD) of each update; exact for adapters of that rank, of other training it is what the rank keeps.
    """
    import torch

    grids = {weight.name: weight.parts for weight in checkpoints.quantized_weights(quantized)}
    model = checkpoints.load_for_scoring(trained, "cpu", compute_dtype("cpu"))
    # As in `measure_perplexity`: its rounding does not depend on who else is in the batch.
    model.set_attn_implementation("eager")
    survivals, held = [], 0
    with torch.no_grad():
        for name, weight in read_tensors(checkpoints.masters_or_published(trained)):
            if name not in grids:
                continue
            before = nf4.dequantize(grids[name])
            update = measure_update(before, grids[name], weight, on_grid=True)
            left, right = low_rank_factors(update.values, rank)
            change = left.float() @ right.float()
            held += left.nbytes + right.nbytes
            survivals.append(survival_of_change(update, change, codes_changed=0.0))
            model.get_parameter(name).copy_(before + change)
    scored = score(model, dataset, batch_size)
    return Apart(scored.perplexity, total(survivals).surviving, held)


def low_rank_factors(matrix: "torch.Tensor", rank: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """bf16 [out, rank] and [rank, in] whose product is the best approximation of a matrix (truncated SVD)."""
    import torch

    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    root = sizes[:rank].sqrt()
    return (left[:, :rank] * root).bfloat16(), (root[:, None] * right[:rank]).bfloat16()
