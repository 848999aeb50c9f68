"""What P is told: what goes, how much of it, and by which importance."""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compression_assets.errors import StudyError
from compression_assets.strict import Strict, unless_default
from compression_assets.training.finetuning import FinetuneRecipe

Cut = Literal["width", "depth", "heads", "hidden"]
UNITS: dict[Cut, str] = {
    "width": "neurons",
    "depth": "layers",
    "heads": "key-value groups",
    "hidden": "channels",
}
"""What each cut removes whole ones of."""
AMONG: tuple[Cut, ...] = ("width", "depth", "heads")
"""What `cut: choose` chooses from: what config.json of most models can state."""


class PruningRecipe(Strict):
    """What goes, how much of it, and by which importance. Defaults: the authors' scripts.

    cut: width: neurons of every feed-forward block; depth: whole layers; heads: attention heads of every layer, by
        whole key-value groups, so that a group's queries go with it; hidden: channels of the hidden states, the same
        ones in every layer (Llama, Mistral, Qwen and Gemma kinds).
        choose: one or several of `among` that share the removal evenly, of which each combination is tried at the
        target before training: the one with the lowest loss on the calibration set is taken.
    among: of cut: choose: the cuts to choose from and to combine.
    ratio: share of the parent's neurons, layers, groups or channels that is removed, rounded down to whole ones.
    target: instead of ratio: the largest model with at most this share of the parent's parameters, embeddings included.
    multiple_of: of cut: width and hidden: the kept width is the nearest positive multiple (ties up; with target: the
        next below). Of cut: choose: also of the numbers that the kept key-value groups have together. 1 is the paper's.
        None: what the kernels of the study's number formats and of what it serves take whole: 64 with NF4 or FP4, 128
        with int4 or int8_grouped (Marlin), 256 with K-quants, 32 with other GGUF types of few bits, else 1.
    layers: of cut: depth: which go. influence: those that change hidden states least, by cosine (ShortGPT, arXiv
        2403.03853); block: neighbours that together change them least (as arXiv 2403.17887); magnitude: those of the
        smallest weights; loss: those without which the loss on the calibration set rises least.
    importance: of cut: width, heads and hidden: size: by weights and activations; loss: by how much the loss on the
        calibration set changes without the unit, to first order, whatever weight_share and activation say.
    weight_share: of cut: width, heads and hidden: weight of the weight magnitude in the importance; the rest goes to
        the activation.
    activation: of cut: width: where it is taken: the input of down_proj, which is what a neuron contributes, or the
        output of gate_proj before its non-linearity, as the authors' scripts have it.
    finetune: training after the cut.
    calibration_batch_size: conversations per forward pass; changes speed, and the result by the rounding of sums only.
    """

    cut: Cut | Literal["choose"] = unless_default("width")
    among: tuple[Cut, ...] = unless_default(AMONG)
    ratio: float = Field(default=0.30, gt=0.0, lt=1.0)
    target: Annotated[float, Field(gt=0.0, lt=1.0)] | None = unless_default(None)
    multiple_of: Annotated[int, Field(ge=1)] | None = None
    layers: Literal["influence", "block", "magnitude", "loss"] = unless_default("influence")
    importance: Literal["size", "loss"] = unless_default("size")
    weight_share: float = Field(default=0.5, ge=0.0, le=1.0)
    activation: Literal["down_proj_input", "gate_proj_output"] = "down_proj_input"
    finetune: FinetuneRecipe = FinetuneRecipe()
    calibration_batch_size: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _only_a_choice_is_among_several(self) -> Self:
        if self.cut != "choose":
            # By value, so that a variant of a choice can be told to be none.
            if self.among != AMONG:
                raise ValueError("among is for cut: choose only")
            return self
        if self.target is None:
            raise ValueError("cut: choose needs a target, since cuts are compared at the same size")
        if len(set(self.among)) != len(self.among) or len(self.among) < 2:
            raise ValueError("among of cut: choose must be two or more different cuts")
        return self

    @property
    def multiple(self) -> int:
        """`multiple_of`; 1 where no study has said what it is."""
        return self.multiple_of or 1

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """What may be cut."""
        return self.among if self.cut == "choose" else (self.cut,)


def kept_units(count: int, ratio: float, multiple_of: int = 1, units: str = "neurons") -> int:
    """Units kept of `count`: count - floor(ratio · count), at the nearest positive multiple (ties up).

    11,008 at 0.30 keeps 7,706 (paper, Table 1), or 7,680 as a multiple of 128. Raises StudyError when the
    ratio is not between 0 and 1, or when the nearest multiple is not below `count`: nothing would be removed.
    """
    if not 0.0 < ratio < 1.0:
        raise StudyError(f"the pruning ratio must lie between 0 and 1 (both excluded), not {ratio}")
    # In decimal, since 0.29 · 100 in binary floating point is 28.999….
    kept = count - int(Decimal(str(ratio)) * count)
    nearest = max((2 * kept + multiple_of) // (2 * multiple_of), 1) * multiple_of
    if nearest >= count:
        smaller = "a smaller multiple_of or " if multiple_of > 1 else ""
        raise StudyError(
            f"pruning {count} {units} by {ratio} keeps {kept}, to the nearest multiple of {multiple_of} "
            f"{nearest}, so nothing is removed; choose {smaller}a larger ratio"
        )
    return nearest
