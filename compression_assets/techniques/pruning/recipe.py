"""What P is told: how much goes, and by which importance."""

from decimal import Decimal
from typing import Literal

from pydantic import Field

from compression_assets.errors import StudyError
from compression_assets.strict import Strict
from compression_assets.training.finetuning import FinetuneRecipe


class PruningRecipe(Strict):
    """How much of every feed-forward block goes, and by which importance. Defaults: the authors' scripts.

    ratio: share of the parent's intermediate size that is removed, rounded down to whole neurons.
    multiple_of: the kept width is the nearest positive multiple (ties up). 1 is the paper's; 64 is what
        bitsandbytes' CPU kernels need once the model is quantized.
    weight_share: weight of the weight magnitude in the importance; the rest goes to the activation.
    activation: where it is taken: the input of down_proj, which is what a neuron contributes, or the output of
        gate_proj before its non-linearity, as the authors' scripts have it.
    finetune: training after the cut.
    calibration_batch_size: conversations per forward pass; changes speed, and the result by the rounding of sums only.
    """

    ratio: float = Field(default=0.30, gt=0.0, lt=1.0)
    multiple_of: int = Field(default=1, ge=1)
    weight_share: float = Field(default=0.5, ge=0.0, le=1.0)
    activation: Literal["down_proj_input", "gate_proj_output"] = "down_proj_input"
    finetune: FinetuneRecipe = FinetuneRecipe()
    calibration_batch_size: int = Field(default=8, ge=1)


def kept_width(width: int, ratio: float, multiple_of: int) -> int:
    """Neurons kept of `width`: width - floor(ratio · width), at the nearest positive multiple (ties up).

    11,008 at 0.30 keeps 7,706 (paper, Table 1), or 7,680 as a multiple of 128. Raises StudyError when the
    ratio is not between 0 and 1, or when the nearest multiple is not below `width`: nothing would be removed.
    """
    if not 0.0 < ratio < 1.0:
        raise StudyError(f"the pruning ratio must lie between 0 and 1 (both excluded), not {ratio}")
    # In decimal, since 0.29 · 100 in binary floating point is 28.999….
    kept = width - int(Decimal(str(ratio)) * width)
    nearest = max((2 * kept + multiple_of) // (2 * multiple_of), 1) * multiple_of
    if nearest >= width:
        raise StudyError(
            f"pruning {width} neurons by {ratio} keeps {kept}, to the nearest multiple of {multiple_of} "
            f"{nearest}, so nothing is removed; choose a smaller multiple_of or a larger ratio"
        )
    return nearest
