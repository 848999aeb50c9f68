"""The `data` block of a study file: where conversations and questions come from, and how they are cut."""

from pydantic import Field

from compression_assets.sources.chat import ChatSource
from compression_assets.sources.questions import QuestionSettings
from compression_assets.strict import Strict
from compression_assets.text.chat_template import TemplateSettings
from compression_assets.text.splits import SplitSize


class SplitSizes(Strict):
    """Sizes of the disjoint slices of the chat data. A slice that no ordering needs may be left out.

    They are filled in the order of these fields. The evaluation slice comes first and the distillation slice last,
    so that another training budget neither changes what is measured nor what the other steps see.
    """

    evaluation: SplitSize
    calibration: SplitSize | None = None
    finetuning: SplitSize | None = None
    teacher: SplitSize | None = None
    distillation: SplitSize | None = None

    def sizes(self) -> dict[str, SplitSize]:
        """Name -> size of the slices that are asked for, in the order in which they are filled."""
        return {name: size for name in type(self).model_fields if (size := getattr(self, name)) is not None}


class Data(TemplateSettings):
    """chat: where conversations come from. evaluation_chat: those of the evaluation split, if from elsewhere.

    questions: reading-comprehension questions in SQuAD's schema, for the asset question_set.

    max_length: tokens of a rendered conversation, template included; the rest is cut off.
    max_refused: share of a source's conversations that the chat template may refuse; these are left out and named.
    """

    chat: ChatSource
    evaluation_chat: ChatSource | None = None
    questions: QuestionSettings | None = None
    max_length: int = Field(ge=8)
    max_refused: float = Field(default=0.05, ge=0, le=1)
    splits: SplitSizes
