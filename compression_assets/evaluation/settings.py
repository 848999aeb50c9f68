"""What a study file says about evaluation. Light: imported with the study, before torch."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from compression_assets.evaluation.embedding import EmbeddingSource
from compression_assets.evaluation.engines.settings import ServedSettings
from compression_assets.evaluation.harness import HarnessSettings
from compression_assets.evaluation.judging.settings import JudgeSettings
from compression_assets.evaluation.text_windows import TextSettings
from compression_assets.sources.models import ModelSource
from compression_assets.strict import Strict


class PerplexitySettings(Strict):
    """batch_size: conversations scored at once; it changes speed, and the result by the rounding of sums."""

    batch_size: int = Field(default=8, ge=1)


class StatisticsSettings(Strict):
    """Bootstrap over items. confidence: of every interval. resamples: draws of all items, with replacement.

    permutations: random exchanges of two models' results, for the p-value of their difference, which is at least
    1 / (permutations + 1); more are drawn where there are so many pairs that none could be significant.
    significance: of a difference, after the correction for the number of pairs.
    """

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=2000, ge=100, le=100_000)
    permutations: int = Field(default=9_999, ge=99, le=1_000_000)
    significance: float = Field(default=0.05, gt=0, lt=0.5)


class AnswerSettings(Strict):
    """How every model answers the questions of `data.questions`.

    questions: how many of the question set are answered, from its beginning; all of them when left out.
    max_new_tokens: an answer that is not finished by then is cut off. temperature: 0 takes the likeliest token each
    time; above it answers are drawn, by the study's seed. batch_size: answers generated together; it changes speed and,
    by rounding, answers: in bfloat16 only 4 of 6 were the same in a batch of 64 as alone.
    """

    questions: PositiveInt | None = None
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0, le=2)
    batch_size: int = Field(default=64, ge=1)


class ClaritySettings(Strict):
    """How the clarity of answers is measured (`evaluation/clarity.py`).

    fluency_model: the fixed language model under which answers are likely or not; "base" is the study's base model.
    embedding_model: of sentences; all-MiniLM-L6-v2 in the paper. batch_size: answers scored at once, speed only.
    """

    fluency_model: ModelSource | Literal["base"] = "base"
    embedding_model: EmbeddingSource
    batch_size: PositiveInt = 16


class DiagnosticsSettings(Strict):
    """What each step did, in the table step_diagnostics: what every Q after training left of it, layer by layer.

    perplexity_of_steps: score intermediate models as well. tokens: of the evaluation set, from its beginning, on which
    steps are compared; None: all of it.
    """

    perplexity_of_steps: bool = True
    tokens: int | None = Field(default=None, ge=1)


class EvaluationSettings(Strict):
    """Measurements of every finished model.

    answers: left out, no model is asked anything. clarity, judge: of these answers; left out, it is not measured, or
    nobody judges. harness: tasks of lm-evaluation-harness.
    diagnostics: left out, steps in between are not looked at.
    """

    perplexity: PerplexitySettings = PerplexitySettings()
    answers: AnswerSettings | None = None
    clarity: ClaritySettings | None = None
    statistics: StatisticsSettings = StatisticsSettings()
    judge: JudgeSettings | None = None
    harness: HarnessSettings | None = None
    diagnostics: DiagnosticsSettings | None = None

    @model_validator(mode="after")
    def _a_judge_has_answers(self) -> Self:
        if self.judge is not None and self.answers is None:
            raise ValueError("judge needs answers to judge: add 'answers: {}' beside it")
        if self.clarity is not None and self.answers is None:
            raise ValueError("clarity is that of answers: add 'answers: {}' beside it")
        return self


class StudyEvaluation(EvaluationSettings):
    """text: perplexity of running text, to hold against papers; left out, it is not measured.

    serving: models that are measured as an engine serves them, beside the leaderboard.
    """

    # Not among the settings above: the fingerprint of metrics_<model> has all of them, and a key more is another one.
    text: TextSettings | None = None
    serving: tuple[ServedSettings, ...] = ()
