"""Servers that speak OpenAI's chat completions each in its own way: judged, or the cause and the setting that helps."""

import json
from pathlib import Path
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.replies import JudgeError, Reply, Shape
from compression_assets_tests.judge_server import JudgeServer, completion, opinion
from compression_assets_tests.judging_helpers import CASES, asker, judged, values


def answered(prompt: str, score: int = 4, **message: Any) -> tuple[int, dict[str, str], bytes]:
    """A completion with token probabilities whose message is changed."""
    status, headers, body = completion(opinion(prompt, score), score)
    content = json.loads(body)
    content["choices"][0]["message"].update(message)
    return status, headers, json.dumps(content).encode()


def without_top(prompt: str, top: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """A completion whose tokens have these `top_logprobs`, or none where there are none."""
    status, headers, body = completion(opinion(prompt, 4), 4)
    content = json.loads(body)
    for token in content["choices"][0].get("logprobs", {"content": []})["content"]:
        del token["top_logprobs"]
        token.update(top)
    return status, headers, json.dumps(content).encode()


@pytest.mark.parametrize(
    "top",
    [
        pytest.param({"top_logprobs": None}, id="null"),
        pytest.param({}, id="absent"),
        pytest.param({"top_logprobs": []}, id="empty"),
        pytest.param({"top_logprobs": [{"token": "four", "logprob": -0.1}]}, id="no label"),
    ],
)
def test_without_probabilities_the_written_number_counts(tmp_path: Path, top: dict[str, Any]) -> None:
    with JudgeServer(lambda _, prompt, __: without_top(prompt, top)) as server:
        outcomes = judged(asker(server, tmp_path), CASES[:1])
    assert values(outcomes, "correctness") == values(outcomes, "relevance") == [0.75]


def test_a_server_that_refuses_probabilities_is_asked_without(tmp_path: Path) -> None:
    def script(_: JudgeServer, prompt: str, request: dict[str, Any]) -> Any:
        if "logprobs" in request:
            return 400, {}, b'{"error": "logprobs is not supported with this model"}'
        return completion(opinion(prompt, 4))

    with JudgeServer(script) as server:
        outcomes = judged(asker(server, tmp_path))
        assert values(outcomes, "correctness") == [0.75] * 4
        # Only the questions under way together meet the refusal.
        assert len(server.prompts) <= 12 + 4


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda text: [{"type": "text", "text": text}], id="one part"),
        pytest.param(
            lambda text: [{"type": "thinking", "thinking": []}, {"type": "text", "text": text}],
            id="two parts",
        ),
        pytest.param(
            lambda text: '<think>They want {"reason": ..., "score": n}. {"score": 1}?</think>\n' + text,
            id="think",
        ),
        pytest.param(
            lambda text: 'So {"score": 1, "verdicts": []} or {x}?</think>' + text, id="think, begun"
        ),
        pytest.param(lambda text: f"Using {{braces}}:\n```json\n{text}\n```\n{{done}}", id="braces around"),
    ],
)
def test_what_surrounds_an_answer_is_passed_over(tmp_path: Path, changed: Any) -> None:
    def script(_: JudgeServer, prompt: str, __: dict[str, Any]) -> Any:
        return answered(prompt, content=changed(json.dumps(opinion(prompt, 4))))

    with JudgeServer(script) as server:
        outcomes = judged(asker(server, tmp_path), CASES[:1])
    assert values(outcomes, "correctness") == pytest.approx([(3.9 - 1) / 4], abs=1e-4)
    assert values(outcomes, "prompt_alignment") == [1.0]


@pytest.mark.parametrize(
    ("message", "finish", "cause"),
    [
        ({"content": None, "reasoning_content": "Let me think"}, "length", r"reasoning .*length.*max_tokens"),
        ({"content": "<think>Let me"}, "length", "thinking is cut off .*max_tokens"),
        ({"content": None}, "stop", "holds no content"),
        ({"content": None, "refusal": "I will not."}, "stop", "refuses to answer: I will not"),
    ],
)
def test_a_missing_answer_names_its_cause(tmp_path: Path, message: Any, finish: str, cause: str) -> None:
    def script(_: JudgeServer, prompt: str, __: dict[str, Any]) -> Any:
        choice = {"message": {"role": "assistant", **message}, "finish_reason": finish}
        return 200, {}, json.dumps({"choices": [choice]}).encode()

    with JudgeServer(script) as server, pytest.raises(StudyError, match=cause):
        judged(asker(server, tmp_path), CASES)


@pytest.mark.parametrize(
    ("refused", "settings", "said"),
    [
        (
            "max_tokens",
            {"length_parameter": "max_completion_tokens"},
            "length_parameter: max_completion_tokens",
        ),
        ("temperature", {"leave_out": ["temperature"]}, r"leave_out: \[temperature\]"),
        ("seed", {"leave_out": ["seed"]}, r"leave_out: \[seed\]"),
        ("response_format", {"json_schema": False}, "json_schema: false"),
    ],
)
def test_a_refused_parameter_names_the_setting_that_helps(
    tmp_path: Path, refused: str, settings: dict[str, Any], said: str
) -> None:
    def script(_: JudgeServer, prompt: str, request: dict[str, Any]) -> Any:
        if refused in request:
            said = f"Unsupported parameter: '{refused}'. Use 'max_completion_tokens' instead."
            return 400, {}, json.dumps({"error": {"message": said}}).encode()
        return completion(opinion(prompt, 4), 4)

    with JudgeServer(script) as server:
        with pytest.raises(StudyError, match=f"HTTP 400.*{said} in evaluation.judge.model"):
            judged(asker(server, tmp_path), CASES)
        outcomes = judged(asker(server, tmp_path, **settings), CASES[:1])
    assert None not in [outcome.value for outcome in outcomes]


def test_a_question_that_is_too_long_is_no_matter_of_names(tmp_path: Path) -> None:
    body = b"'max_tokens' is too large: 512. This model's maximum context length is 1024 tokens"
    with (
        JudgeServer(lambda *_: (400, {}, body)) as server,
        pytest.raises(StudyError, match="smaller max_characters"),
    ):
        judged(asker(server, tmp_path), CASES)


def test_an_example_in_unfinished_thinking_is_no_answer() -> None:
    with pytest.raises(JudgeError, match="thinking is cut off"):
        Reply('<think>Maybe {"score": 5, "reason": ""}').checked(Shape("score"))
