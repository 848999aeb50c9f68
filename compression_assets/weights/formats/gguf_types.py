"""GGUF's tensor types by name: which there are, which format's numbers each holds exactly. Light; nothing is rounded.

A block of Q4_0 or Q8_0 is 32 codes of 4 or 8 bits and an fp16 scale (ggml's block_q4_0 and block_q8_0), which is what
int4 and int8_grouped store with larger groups.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.strict import near_match
from compression_assets.weights.formats.format import Format
from compression_assets.weights.formats.grouped_integer import GroupedInteger
from compression_assets.weights.shapes import attention_width

if TYPE_CHECKING:
    import gguf

EXACT = ("bf16", "f16")
"""Types in which a 16-bit model keeps its predictions."""
PLAIN = (*EXACT, "q8_0", "q5_0", "q4_0")
"""Every matrix but embeddings and output layer in one type, by the gguf package; vectors are in float32."""
MIXTURES = {"q4_k_m": "q4_k", "q5_k_m": "q5_k", "q6_k": "q6_k", "iq4_nl": "iq4_nl"}
"""Types that llama.cpp mixes with others, by its own rule and code (`gguf_mixture.py`) -> the main one."""
TYPES = (*PLAIN, *MIXTURES)
EMBEDDINGS = (*PLAIN, "q6_k")
"""What embeddings and the output layer may be in, where that is said."""
COARSE = ("q5_0", "q4_0", "q4_k_m", "q5_k_m", "iq4_nl")
"""Of four and five bits."""
BLOCK, LARGE_BLOCK = 32, 256
"""Weights that share a scale: of most types, and of K-quants."""
CODE_BITS = {"q4_0": 4, "q8_0": 8}
ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""`model_type` of the models that are written to GGUF -> the gguf package's name."""


@dataclass(frozen=True)
class GgufForm:
    """How a model is written to GGUF.

    kind: one of TYPES. embeddings: type of embeddings and output layer, one of EMBEDDINGS; None: as llama.cpp has it.
    importance: weights are rounded by how large their inputs are on the calibration set (llama.cpp's imatrix).
    """

    kind: str = "bf16"
    embeddings: str | None = None
    importance: bool = False

    @property
    def name(self) -> str:
        """In names of files and assets: "q4_k_m", "q4_0_embeddings_bf16_imatrix"."""
        return "_".join(
            [
                self.kind,
                *([f"embeddings_{self.embeddings}"] if self.embeddings else []),
                *(["imatrix"] if self.importance else []),
            ]
        )

    @property
    def row_multiple(self) -> int:
        """Of which a matrix's inputs are a multiple where all of it is in the type that the form is named after."""
        if MIXTURES.get(self.kind, "").endswith("_k"):
            return LARGE_BLOCK
        return BLOCK if self.kind not in EXACT else 1

    @property
    def needs_ggml(self) -> bool:
        """Whether llama.cpp's own code rounds it: the gguf package has no K-quants, and knows no importance."""
        return self.kind in MIXTURES or self.importance or self.embeddings == "q6_k"


def gguf_form(text: str, embeddings: str | None = None, importance: bool = False) -> GgufForm:
    """The form that "gguf" or "gguf:TYPE" names. Raises StudyError for a type that there is not."""
    kind = text.partition(":")[2] or "bf16"
    for name, known in ((kind, TYPES), (embeddings, (None, *EMBEDDINGS))):
        if name not in known:
            raise StudyError(
                f"unknown GGUF type {name!r}: {near_match(str(name), [one for one in known if one])}"
            )
    if importance and kind in EXACT:
        raise StudyError(f"{kind} rounds nothing, so that importance is of no use to it")
    return GgufForm(kind, embeddings, importance)


def ggml_type(kind: str) -> "gguf.GGMLQuantizationType":
    import gguf

    return gguf.GGMLQuantizationType[kind.upper()]


def block_of(kind: str) -> int:
    """Weights of a row that share a scale."""
    import gguf

    return gguf.GGML_QUANT_SIZES[ggml_type(kind)][0]


def refusal(config: Mapping[str, Any]) -> str:
    """Why llama.cpp would compute another model than a config.json's content says, or none at all; "" if neither."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return f"GGUF is written for {', '.join(ARCHITECTURES)}, and this is a {kind} model"
    if (activation := config.get("hidden_act") or "silu") != "silu":
        return f"llama.cpp computes silu in a {kind}, and this one has hidden_act {activation!r}"
    if config.get("use_sliding_window"):
        return f"llama.cpp attends to all positions in a {kind}, and this one to a sliding window"
    hidden = config["hidden_size"]
    if kind == "qwen2" and (attended := attention_width(config) or hidden) != hidden:
        return (
            f"llama.cpp's qwen2 has heads that fill its width, and those of this one are {attended} in "
            f"{hidden} (P with cut: heads or hidden makes such models)"
        )
    if kind == "qwen3" and config.get("attention_bias"):
        return "llama.cpp's qwen3 has no biases in its attention, and this one has"
    return ""


def misfit(form: GgufForm, hidden: int, widths: Iterable[int] = ()) -> str:
    """Why a model does not go into a form: blocks do not divide its rows; "" if it does.

    hidden: width of embeddings. widths: of the rows of the other matrices. Mixtures have types for every width.
    """
    block = LARGE_BLOCK if form.embeddings == "q6_k" else BLOCK
    if form.embeddings not in (None, *EXACT) and hidden % block:
        return f"embeddings of width {hidden} do not go into {form.embeddings}, whose blocks are {block}: use bf16"
    rounded = form.kind in PLAIN and form.kind not in EXACT
    if rounded and (wrong := [width for width in widths if width % BLOCK]):
        return f"rows of {wrong[0]} weights are no multiple of {form.kind}'s {BLOCK}: use gguf:bf16"
    return ""


def same_numbers(form: Format, kind: str) -> bool:
    """Whether a type holds exactly what a format stores."""
    return (
        isinstance(form, GroupedInteger) and form.bits == CODE_BITS.get(kind) and form.group_size % BLOCK == 0
    )


def types_as_stored(forms: Mapping[str, Format], kind: str) -> dict[str, str]:
    """Weight name -> the type that holds exactly what its format stores, of the weights that are written so.

    forms: of the quantized weights. Those of eight bits in a mixture of formats are q8_0 beside q4_0.
    """
    kinds = ("q4_0", "q8_0") if kind == "q4_0" else (kind,)
    return {name: own for name, form in forms.items() for own in kinds if same_numbers(form, own)}


def second_rounding(model: str, form: Format, kind: str, source: str) -> str:
    """Why a model whose weights lie on a grid does not go into a type that has another one; "" where it does.

    model: what it is called. source: the full-precision model before it, if that is known.
    """
    if form.full_precision or kind not in COARSE or same_numbers(form, kind):
        return ""
    return (
        f"{model} is in {form.title}: in {kind} its weights would be rounded a second time, to another grid; "
        f"export {source or 'the model it was quantized from'} as gguf:{kind}, or this one as gguf:q8_0"
    )
