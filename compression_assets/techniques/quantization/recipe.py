"""What Q is told: the number format, and how a weight becomes a code of it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from compression_assets.strict import Strict
from compression_assets.weights.formats.format import Format
from compression_assets.weights.formats.registry import make_format

CALIBRATION_SET = "calibration_set"
GRID = "grid"
"""The earlier quantized model whose absmax is kept, among the models that Q reads."""


class QuantizationRecipe(Strict):
    """How linear layers are stored. Defaults: the authors' scripts (NF4, block 64, double quantization).

    kind: nf4; fp4, as large with other values; int8 (LLM.int8, threshold 6.0), to which blocks and absmax do not apply.
    blocksize: weights that share one absmax; transformers makes no other. double_quant: absmax itself is
        stored in 8 bits.
    compute_dtype: dtype in which the quantized layers multiply, as recorded in config.json.
    rounding: how a weight becomes a code. nearest: bitsandbytes' own; stochastic: one of the two around it, with
        chances such that the mean over seeds is the weight (up to those beyond the stored absmax); gptq: such that the
        outputs of every layer on the calibration set change least.
    keep_absmax: take over the absmax of the last Q before this one in the ordering, in layers whose shape is the same.
    answer_tokens: tokens that the written model generates before it counts as made.
    """

    kind: Literal["nf4", "fp4", "int8"] = "nf4"
    blocksize: Literal[64] = 64
    double_quant: bool = True
    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    rounding: Literal["nearest", "stochastic", "gptq"] = "nearest"
    keep_absmax: bool = False
    answer_tokens: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _rounding_fits_the_kind(self) -> Self:
        if self.rounding not in self.format.roundings or (
            self.keep_absmax and self.format.roundings == ("nearest",)
        ):
            raise ValueError(f"rounding and keep_absmax can be chosen for nf4 only, not for {self.kind}")
        return self

    @property
    def format(self) -> Format:
        """The number format that this recipe leaves."""
        return make_format(self.kind, double_quant=self.double_quant, compute_dtype=self.compute_dtype)

    @property
    def by_output(self) -> bool:
        """Whether rounding looks at the layers' inputs on the calibration set."""
        return self.rounding == "gptq"
