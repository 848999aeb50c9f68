"""A judge on loopback for tests: speaks OpenAI's chat completions (and Gemini's), and misbehaves on demand."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

from compression_assets_tests.loopback import LoopbackServer, QuietHandler

Answer = tuple[int, dict[str, str], bytes]
Script = Callable[["JudgeServer", str, dict[str, Any]], Answer]


class JudgeServer(LoopbackServer):
    """prompts: every prompt that came in. script: what to answer; changed at will by a test."""

    def __init__(self, script: Script):
        self.script = script
        self.prompts: list[str] = []
        self.headers: list[dict[str, str]] = []
        super().__init__(self._handler())

    def _handler(self) -> type[QuietHandler]:
        judge = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                request = json.loads(self.body())
                if "messages" in request:
                    prompt = request["messages"][0]["content"]
                else:
                    prompt = request["contents"][0]["parts"][0]["text"]
                judge.prompts.append(prompt)
                judge.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, headers, body = judge.script(judge, prompt, request)
                try:
                    self.send_response(status)
                    for name, value in {"content-length": str(len(body)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # the client stopped waiting
                    self.close_connection = True

        return Handler


def opinion(prompt: str, score: int) -> dict[str, Any]:
    """What a judge with this opinion (1 to 5) of an answer says in the shape that the prompt asks for."""
    if "verdicts" in prompt:
        word = "yes" if score >= 4 else "no"
        return {"verdicts": [{"verdict": word, "reason": ""}, {"verdict": word, "reason": ""}]}
    return {"reason": "as it seems", "score": score}


def completion(content: Any, score: int | None = None) -> Answer:
    """A chat completion with this content; with token probabilities for a score, nine tenths of them on it."""
    text = content if isinstance(content, str) else json.dumps(content)
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if score is not None:
        other = 2 if score == 1 else score - 1
        top = [{"token": str(score), "logprob": -0.10536}, {"token": str(other), "logprob": -2.302585}]
        before, _, after = text.partition(f'"score": {score}')
        plain = {"logprob": -0.01, "top_logprobs": []}
        choice["logprobs"] = {
            "content": [
                {"token": f'{before}"score": ', **plain},
                {"token": str(score), "logprob": -0.10536, "top_logprobs": top},
                {"token": after, **plain},
            ]
        }
    return 200, {}, json.dumps({"choices": [choice], "usage": {"total_tokens": 10}}).encode()


def always(score: int) -> Script:
    return lambda _, prompt, __: completion(opinion(prompt, score))


def fair(_: JudgeServer, prompt: str, __: dict[str, Any]) -> Answer:
    """A judge that knows what the planted answers are worth."""
    return completion(opinion(prompt, planted_score(prompt)))


def planted_score(prompt: str) -> int:
    from compression_assets.evaluation.judging.calibration import planted_cases

    answer = re.search(r"Actual Output:\n(.*?)\s*\n\n", prompt.rpartition("Input:\n")[2], re.DOTALL)
    assert answer
    kinds = {case.answer: case.id.rpartition(":")[2] for case in planted_cases(30)}
    kind = kinds[answer[1].strip()]
    relevant = "Input and Actual Output" in prompt
    if kind in ("right", "same", "long") or (relevant and kind in ("wrong", "denial")):
        return 5
    return 2 if kind == "off_topic" and not relevant else 1


def hang(*_: Any) -> Answer:
    time.sleep(3)
    return 200, {}, b"{}"
