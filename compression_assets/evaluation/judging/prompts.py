"""What judges are asked: DeepEval's metrics with this project's steps, rubric and instructions.

Two G-Eval metrics and one prompt-alignment metric. The wording around them (DeepEval's templates) is DeepEval's own.
G-Eval is given its evaluation steps, so none are made up by the judge and no `criteria` are passed: DeepEval ignores
those once there are steps. The rubric spans SCALE, and DeepEval maps the score to 0..1 by (score - 1) / 4; where the
judge gives token probabilities it is the probability-weighted mean of the scale (section 2 of arXiv 2303.16634).
"""

import logging
import os
from dataclasses import dataclass
from typing import Any

from compression_assets.evaluation.judging.replies import SCALE

CORRECTNESS, RELEVANCE, PROMPT_ALIGNMENT = "correctness", "relevance", "prompt_alignment"
METRICS = (CORRECTNESS, RELEVANCE, PROMPT_ALIGNMENT)

STEPS = {
    CORRECTNESS: (
        "Read the Context and the Input, which is a question about it. The Expected Output is a right answer; "
        "where it lists several, separated by ' / ', each of them is right.",
        "Find the answer that the Actual Output gives, whatever its wording or length.",
        "Judge whether it states the same fact as the Expected Output and nothing that the Context contradicts.",
        "A wrong fact, an answer to another question or no answer at all is not correct, however well it is written.",
    ),
    RELEVANCE: (
        "Read the Input, which is a question.",
        "Judge whether the Actual Output tries to answer exactly this question, with the kind of answer it asks for.",
        "Whether the answer is true does not matter here; another topic, digressions or no answer at all do.",
    ),
}
RUBRIC = {
    CORRECTNESS: (
        "Wrong, contradicts the Context, or no answer.",
        "Mostly wrong, with something right in it.",
        "Partly right, or right but with a wrong statement beside it.",
        "Right but for a small omission.",
        "Right.",
    ),
    RELEVANCE: (
        "Not about the question, or no answer.",
        "About the topic, but not an answer to the question.",
        "An answer to part of the question, or buried in other things.",
        "An answer to the question, with something beside it.",
        "An answer to exactly this question.",
    ),
}
INSTRUCTIONS = ("Answer the question.", "Base the answer on the provided context.")
"""The paper's one instruction, in its two parts; alignment is the share of them that were followed: 0, 0.5 or 1."""

CASE_MARKS = ("\nTest Case:\n", "\nInput:\n")
"""Where DeepEval's templates stop being the same for all cases; a local judge need not read again what comes before."""

_CUT = " […]"


@dataclass(frozen=True)
class Case:
    """An answer to judge. expected: every answer that counts as right. answer: as generated; may be empty."""

    id: str
    question: str
    context: str
    expected: tuple[str, ...]
    answer: str


def import_deepeval() -> None:
    """Import deepeval with telemetry, tracing, .env files and files of its own in the working directory all off."""
    os.environ["DEEPEVAL_TELEMETRY_OPT_OUT"] = "1"
    os.environ["ERROR_REPORTING"] = "0"
    os.environ["DEEPEVAL_DISABLE_DOTENV"] = "1"
    os.environ["DEEPEVAL_DISABLE_LEGACY_KEYFILE"] = "1"
    os.environ["CONFIDENT_TRACE_SAMPLE_RATE"] = "0"
    os.environ["CONFIDENT_TRACE_FLUSH"] = "0"
    os.environ["DEEPEVAL_EVAL_MODE"] = "llm"
    # Retries, time-outs and their logs are ours (`asking`): deepeval's would multiply them and log what servers said.
    os.environ["DEEPEVAL_SDK_RETRY_PROVIDERS"] = "*"
    os.environ["DEEPEVAL_DISABLE_TIMEOUTS"] = "1"
    for name in ("deepeval", "httpx", "httpcore", "google_genai", "openai"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import deepeval  # noqa: F401


def metric(name: str, judge: Any) -> Any:
    """A DeepEval metric that asks `judge` (a DeepEvalBaseLLM); a new one for each case, since it keeps its result."""
    from deepeval.metrics import GEval, PromptAlignmentMetric
    from deepeval.metrics.g_eval import Rubric
    from deepeval.test_case import SingleTurnParams as Part

    if name == PROMPT_ALIGNMENT:
        return PromptAlignmentMetric(list(INSTRUCTIONS), model=judge, include_reason=False, eval_mode="llm")
    parts = [Part.INPUT, Part.ACTUAL_OUTPUT]
    if name == CORRECTNESS:
        parts = [Part.CONTEXT, Part.INPUT, Part.EXPECTED_OUTPUT, Part.ACTUAL_OUTPUT]
    rubric = [
        Rubric(score_range=(int(label), int(label)), expected_outcome=text)
        for label, text in zip(SCALE, RUBRIC[name], strict=True)
    ]
    return GEval(name, parts, evaluation_steps=list(STEPS[name]), rubric=rubric, model=judge)


def deepeval_case(name: str, case: Case, max_characters: int) -> Any:
    """DeepEval's test case: question, answer, expected answer and context, cut to `max_characters` each.

    For prompt alignment the input is the whole prompt of the paper, since its instructions are about that.
    """
    from deepeval.test_case import LLMTestCase

    question, context, answer = (
        cut(text, max_characters) for text in (case.question, case.context, case.answer)
    )
    prompt = f"Answer this question based on the provided context.\nContext: {context}\nQuestion: {question}"
    return LLMTestCase(
        input=prompt if name == PROMPT_ALIGNMENT else question,
        actual_output=answer,
        expected_output=" / ".join(dict.fromkeys(case.expected)),
        context=[context],
    )


def cut(text: str, length: int) -> str:
    """At most `length` characters of a text, marked where the rest is missing."""
    return text if len(text) <= length else text[:length] + _CUT
