"""What QAD is told: the loss, how it is trained, and what becomes of the scales."""

from typing import Literal

from pydantic import Field

from compression_assets.techniques.distillation.recipe import TeacherRecipe

Scales = Literal["kept", "fitted", "new"]


class QADRecipe(TeacherRecipe):
    """Training of a quantized model through its stored weights. Defaults: KL to the teacher alone, at temperature 1.

    The loss is that of the report on QAD (arXiv 2601.20088); steps and batches are KD's.

    learning_rate: updates that never add up to half a bin change no code, so it is higher than KD's (docs/findings.md).
    scales: of the blocks, after every step. kept: those that they came with, and only codes change. fitted: those of
        the least squared error, found from the kept ones; they train with the weights (docs/findings.md). new: the
        format's own, so that a block's scale follows its largest weight. Formats without a grid to round to (fp4, int8)
        are always quantized anew.
    masters: what they start from. dequantized: the stored weights, each in the middle of its bin, which a short
        training seldom leaves. unquantized: the weights that Q rounded, moved into the bins of their codes: the first
        forward pass is the same, and codes of weights near an edge follow small updates (docs/findings.md).
    """

    alpha: float = Field(default=1.0, ge=0, le=1, description="share of the KL")
    temperature: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=5e-4, gt=0)
    scales: Scales = "kept"
    masters: Literal["dequantized", "unquantized"] = "dequantized"
