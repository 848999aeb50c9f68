"""What a study file says about judging. Light: imported with the study, before deepeval and torch."""

import re
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from compression_assets.evaluation.embedding import EmbeddingSource
from compression_assets.sources.models import ModelSource
from compression_assets.strict import Strict

PLANTED_QUESTIONS = 30
"""Questions of the calibration test that ship with the package (the half `test` of `data/planted_answers.jsonl`)."""


def _variable(name: str) -> str:
    # The value is not repeated in the message: somebody may have put the key itself here.
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        raise ValueError(
            "must be the NAME of an environment variable (capitals, digits, '_'), never the key itself"
        )
    return name


def _plain_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http(s) address such as http://127.0.0.1:11434/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "must hold no user, password, query or fragment; name the key's variable in api_key_env"
        )
    return url.rstrip("/")


Variable = Annotated[str, AfterValidator(_variable)]
Text = Annotated[str, Field(min_length=1)]
Kind = Literal[
    "wrong",
    "off_topic",
    "empty",
    "other_words",
    "long",
    "denial",
    "parroting",
    "copying",
    "run_on",
    "other_language",
]
KINDS: tuple[str, ...] = get_args(Kind)
"""What is tried in the calibration test: see `calibration.PAIRS`."""


class GeminiJudge(Strict):
    """Google's Gemini through DeepEval's own model class. The paper's judge is the default."""

    kind: Literal["gemini"]
    model: Text = "gemini-2.5-flash-lite"
    api_key_env: Variable = "GEMINI_API_KEY"


class OpenAiJudge(Strict):
    """Anything that speaks OpenAI's chat completions: Ollama, vLLM, a local server, a hosted service.

    api_key_env: variable that holds the key; None sends none. json_schema: ask for answers constrained to the
    schema; some servers refuse that. log_probs: ask for token probabilities, with which G-Eval weights its score;
    where a server has none, the number that the judge writes counts. max_tokens: that the judge may write, its
    thinking included. length_parameter: what the server calls that limit; OpenAI's reasoning models want
    max_completion_tokens. leave_out: parameters that the server refuses; answers then vary from run to run.
    """

    kind: Literal["openai_compatible"]
    base_url: Annotated[str, AfterValidator(_plain_url)]
    model: Text
    api_key_env: Variable | None = None
    json_schema: bool = True
    log_probs: bool = True
    max_tokens: int = Field(default=512, ge=16)
    length_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    leave_out: tuple[Literal["temperature", "seed"], ...] = ()


class LocalJudge(Strict):
    """A transformers model on this machine. source: left out, the study's own base model judges."""

    kind: Literal["local"]
    source: ModelSource | None = None


class LikelihoodJudge(Strict):
    """A transformers model on this machine that is not asked but read: how far an answer and what is known explain each
    other, by their likelihoods. Any language model will do, a small one too. source: left out, the study's own base."""

    kind: Literal["likelihood"]
    source: ModelSource | None = None


class EmbeddingJudge(Strict):
    """Cosines of sentence embeddings between question, expected answer and answer: fast, and independent of any
    language model. It knows what an answer is about, hardly whether it is true."""

    kind: Literal["embedding"]
    model: EmbeddingSource


JudgeModel = Annotated[
    GeminiJudge | OpenAiJudge | LocalJudge | LikelihoodJudge | EmbeddingJudge, Field(discriminator="kind")
]
LanguageModelJudge = LocalJudge | LikelihoodJudge
"""Judges that are a model directory on this machine."""


class PatienceSettings(Strict):
    """How long a judge is waited for. None of it changes an answer, so none of it makes finished work stale.

    concurrency: questions under way at once (a local judge answers one at a time). timeout_seconds: of one attempt.
    attempts, item_seconds: of one question, first waiting `backoff_seconds`, then twice as long each time, with
    jitter. run_seconds: of all questions about one model. give_up_after: so many questions failing with none
    answered means that the judge is dead.
    """

    concurrency: int = Field(default=4, ge=1, le=64)
    timeout_seconds: float = Field(default=60.0, gt=0)
    attempts: int = Field(default=6, ge=1, le=100)
    backoff_seconds: float = Field(default=1.0, gt=0)
    item_seconds: float = Field(default=180.0, gt=0)
    run_seconds: float = Field(default=3600.0, gt=0)
    give_up_after: int = Field(default=3, ge=1)


class JudgeSettings(Strict):
    """G-Eval and prompt alignment: who judges, how many answers, and when to believe it.

    items: answers judged of each model, the first of its question set, so the same ones for all. coverage: share of
    them that must have been judged for a score to stand. calibration_questions: of the planted ones that the judge
    is tried on. trust: a column is trusted when the lower end of the judge's pairwise accuracy reaches it;
    trust_kinds: kinds of planted pairs whose own accuracy has to reach it too. others: judges of the same answers whose
    scores are compared with the first one's in the table `judge_agreement`, and stand in no other.
    max_characters: of a context, question or answer as the judge reads it; the rest is cut off and marked.
    """

    model: JudgeModel
    items: int = Field(default=100, ge=1)
    coverage: float = Field(default=0.95, gt=0, le=1)
    calibration_questions: int = Field(default=PLANTED_QUESTIONS, ge=2, le=PLANTED_QUESTIONS)
    trust: float = Field(default=0.8, gt=0.5, lt=1)
    trust_kinds: tuple[Kind, ...] = ()
    others: tuple[JudgeModel, ...] = ()
    max_characters: int = Field(default=6000, ge=100)
    patience: PatienceSettings = PatienceSettings()

    @field_validator("others")
    @classmethod
    def _no_further_models(cls, others: tuple[JudgeModel, ...]) -> tuple[JudgeModel, ...]:
        if any(isinstance(other, LanguageModelJudge) and other.source is not None for other in others):
            raise ValueError(
                "others may judge with the base model, an address or embeddings, not a model of their own"
            )
        return others

    def content(self) -> dict[str, Any]:
        """JSON of everything that a judged score depends on: all but the patience."""
        return self.model_dump(mode="json", exclude={"patience"})
