"""What a technique is: one class that says everything about itself, to the graph, the plan and the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from compression_assets.errors import StudyError
from compression_assets.store.reports import StepReport
from compression_assets.strict import Strict
from compression_assets.techniques.prediction import Prediction, StepContext, in_format
from compression_assets.techniques.step import StepInputs
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.formats.format import Format
from compression_assets.weights.shapes import Config

DEQUANTIZATION = "D"
EarlierModel = Callable[[Sequence[type["Technique"]]], int]
"""From the techniques of all steps before this one to how many of them had run when the wanted model was made (0: the
base). Raises StudyError where an ordering has no such model before the step."""


@dataclass(frozen=True)
class Reads:
    """What a step reads besides its parent.

    data: data assets, such as "calibration_set" or "teacher_logits". models: a name of the technique's own -> which
    earlier model of the ordering; `StepInputs.models` has its directory under that name.
    """

    data: tuple[str, ...] = ()
    models: Mapping[str, EarlierModel] = field(default_factory=dict)


class Technique:
    """The base class of every technique. It is never instantiated; what is left out has the value given here.

    name: what orderings call it, in capitals. title: in sentences. Recipe: its settings in a study file.
    needs_full_precision: it cannot start from a quantized model; a dequantization is inserted before it.
    quantizes: it leaves a quantized model, in the format that `leaves` names.
    needs_quantized: it cannot start from a full-precision model, and leaves its number format as it was.
    checks: names of the integrity checks that every one of its reports has.
    apply: makes the new model directory. Write it as a function in a module of its own: its code, with the Recipe's,
    decides whether a model is made again, and `predict` must not. A step whose model has other layers, or layers
    under other names, says so with `weights.origins.write_origins`; else nothing can be compared across it.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    Recipe: ClassVar[type[Strict]] = Strict
    needs_full_precision: ClassVar[bool] = True
    quantizes: ClassVar[bool] = False
    needs_quantized: ClassVar[bool] = False
    checks: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def apply(step: StepInputs) -> StepReport:
        """Make the new model in `step.output`."""
        raise NotImplementedError

    @classmethod
    def settled(cls, recipe: Any, row_multiple: int) -> Any:
        """The recipe with what it leaves to the study filled in.

        row_multiple: of which the inputs of linear layers are a multiple where kernels take them whole, for the number
        formats that the study's models are in.
        """
        return recipe

    @classmethod
    def reads(cls, recipe: Any) -> Reads:
        """What a step with this recipe reads."""
        return Reads()

    @classmethod
    def gpus(cls, recipe: Any, training: int) -> int:
        """GPUs that a step has in a study whose trainings have `training` of them; `apply` gets them as `devices`.

        Raises StudyError when `training` is above 1 and the recipe's training cannot be shared.
        """
        return 1

    @classmethod
    def leaves(cls, recipe: Any) -> Format:
        """The number format of the new model's weights; a technique that quantizes says which."""
        return BF16()

    @staticmethod
    def refusal(config: Config, recipe: Any) -> str | None:
        """Why a model of this config.json cannot be given to a step, in a sentence without the step's name; or None."""
        return None

    @classmethod
    def predict(cls, config: Config, recipe: Any, context: StepContext) -> Prediction:
        """What a step will come to, from the parent's config.json alone.

        Raises StudyError when the recipe cannot be applied to the config. Where a class does not say, shapes stay what
        they are and nothing is known of the costs.
        """
        return Prediction(in_format(config, cls.leaves(recipe)), flops=None, seconds=None)


def last_quantized(before: Sequence[type[Technique]]) -> int:
    """The `EarlierModel` that was quantized, before a dequantization if there was one."""
    for length in range(len(before), 0, -1):
        if quantized_by(before[:length]) is not None:
            return length
    raise StudyError("nothing is quantized before it")


def quantized_by(steps: Sequence[type[Technique]]) -> int | None:
    """Index of the step that gave a model of these steps its number format; None in full precision."""
    for index in range(len(steps) - 1, -1, -1):
        if steps[index].quantizes:
            return index
        if steps[index].needs_full_precision or steps[index].name == DEQUANTIZATION:
            return None
    return None
