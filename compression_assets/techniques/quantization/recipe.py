"""What Q is told: the number format, and how a weight becomes a code of it."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from compression_assets.strict import Strict, unless_default
from compression_assets.weights.formats.format import Format
from compression_assets.weights.formats.grid import GridFormat
from compression_assets.weights.formats.registry import format_class, make_format, quantizing_formats

CALIBRATION_SET = "calibration_set"
MAX_UNCOVERED = 0.05
"""Share of a model's matrices, embeddings and output layer aside, that Q may leave as they are without a word."""
GRID = "grid"
"""The earlier quantized model whose absmax is kept, among the models that Q reads."""
MIXED = "mixed"
"""The kind that chooses a format for each layer."""
MIB = 2**20


def _known_format(kind: str) -> str:
    names = [*map(repr, quantizing_formats()), repr(MIXED)]
    if repr(kind) not in names:
        allowed = f"{', '.join(names[:-1])} or {names[-1]}"
        raise PydanticCustomError("format", "Input should be {allowed}", {"allowed": allowed})
    return kind


class QuantizationRecipe(Strict):
    """How linear layers are stored. Defaults: the authors' scripts (NF4, block 64, double quantization).

    kind: a number format: nf4; fp4, as large with other values; int8 (LLM.int8, threshold 6.0), to which blocks and
        absmax do not apply; int4 and int8_grouped, integers that transformers, vLLM and llama.cpp run; one that
        another package brings; or mixed: one of `formats` for each layer, such that the model's predictions on the
        calibration set change least within a budget.
    bits: of kind: mixed: the budget, in bits a weight of the linear layers, scales included.
    max_mib: of kind: mixed: the budget instead as MiB of all tensors.
    formats: of kind: mixed: what there is to choose from. Queries, keys and values of a layer get the same one, and so
        do gate and up, since engines run them as one matrix.
    sensitivity_tokens: of kind: mixed: content tokens on which each format of each layer is tried, a forward pass each.
    group_size: of int4 and int8_grouped: neighbours in a row that share a scale; None: 64.
    blocksize: weights that share one absmax; transformers makes no other. double_quant: absmax itself is
        stored in 8 bits.
    compute_dtype: dtype in which the quantized layers multiply, as recorded in config.json.
    rounding: how a weight becomes a code. nearest: bitsandbytes' own; stochastic: one of the two around it, with
        chances such that the mean over seeds is the weight (up to those beyond the stored absmax); gptq: such that the
        outputs of every layer on the calibration set change least.
    keep_absmax: take over the absmax of the last Q before this one in the ordering, in layers whose shape is the same.
    answer_tokens: tokens that the written model generates before it counts as made.
    accept_uncovered: also quantize a model of which more than a twentieth stays in 16 bit, embeddings and output layer
        aside: matrices that are no linear layers, such as experts.
    """

    kind: Annotated[str, AfterValidator(_known_format)] = "nf4"
    bits: Annotated[float, Field(gt=0)] | None = unless_default(None)
    max_mib: Annotated[float, Field(gt=0)] | None = unless_default(None)
    formats: tuple[Literal["int4", "int8_grouped", "bf16"], ...] = unless_default(
        ("int4", "int8_grouped", "bf16")
    )
    sensitivity_tokens: Annotated[int, Field(ge=1)] = unless_default(512)
    group_size: Literal[32, 64, 128] | None = None
    blocksize: Literal[64] = 64
    double_quant: bool = True
    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    rounding: Literal["nearest", "stochastic", "gptq"] = "nearest"
    keep_absmax: bool = False
    answer_tokens: int = Field(default=8, ge=1)
    accept_uncovered: bool = False

    @model_validator(mode="after")
    def _rounding_fits_the_kind(self) -> Self:
        if (self.rounding != "nearest" or self.keep_absmax) and not isinstance(self.format, GridFormat):
            able = [name for name in quantizing_formats() if issubclass(format_class(name), GridFormat)]
            allowed = f"{', '.join(able[:-1])} and {able[-1]}"
            raise ValueError(
                f"rounding and keep_absmax can be chosen for {allowed} only, not for {self.kind}"
            )
        return self

    @model_validator(mode="after")
    def _only_groups_have_a_size(self) -> Self:
        if self.group_size is not None and not hasattr(self.format, "group_size"):
            raise ValueError(f"group_size is for int4 and int8_grouped only, not for {self.kind}")
        return self

    @model_validator(mode="after")
    def _only_a_mixture_has_a_budget(self) -> Self:
        if not self.mixed:
            fields = type(self).model_fields
            own = ("bits", "max_mib", "formats", "sensitivity_tokens")
            # By value, so that a variant of a mixture can be told to be none.
            if any(getattr(self, name) != fields[name].default for name in own):
                raise ValueError("bits, max_mib, formats and sensitivity_tokens are for kind: mixed only")
            return self
        if (self.bits is None) == (self.max_mib is None):
            raise ValueError("kind: mixed needs a budget, either bits or max_mib")
        if len(set(self.formats)) != len(self.formats) or len(self.formats) < 2:
            raise ValueError("formats of kind: mixed must be two or more different ones")
        if self.keep_absmax:
            raise ValueError("keep_absmax is not for kind: mixed, whose layers have formats of their own")
        return self

    @property
    def format(self) -> Format:
        """The number format that this recipe leaves; of a mixture the first one."""
        return self.candidates[0]

    @property
    def candidates(self) -> list[Format]:
        """The formats that a weight may be in, those of few bits first."""
        options: dict[str, Any] = {"double_quant": self.double_quant, "compute_dtype": self.compute_dtype}
        if self.group_size is not None:
            options["group_size"] = self.group_size
        names = self.formats if self.mixed else (self.kind,)
        return sorted((make_format(name, **options) for name in names), key=lambda form: form.full_precision)

    @property
    def mixed(self) -> bool:
        """Whether each layer has a format of its own."""
        return self.kind == MIXED

    @property
    def by_output(self) -> bool:
        """Whether rounding looks at the layers' inputs on the calibration set."""
        return self.rounding == "gptq"

    @property
    def calibrated(self) -> bool:
        """Whether the calibration set is read."""
        return self.by_output or self.mixed


def too_much_uncovered(kind: str, uncovered: float, recipe: QuantizationRecipe) -> str | None:
    """Why a model of a type, of which a share is left uncovered, is not quantized; None if it is."""
    if uncovered == 1.0:
        return f"models of type {kind!r} have no linear layers that quantization covers: leave Q out of the orderings"
    if uncovered <= MAX_UNCOVERED or recipe.accept_uncovered:
        return None
    return (
        f"of models of type {kind!r} Q would leave {uncovered:.0%} of the weights in 16 bit (embeddings and output "
        "layer aside), because they are no linear layers: use another model, or write Q: {accept_uncovered: true}"
    )
