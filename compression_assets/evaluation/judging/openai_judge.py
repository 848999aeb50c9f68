"""A judge behind OpenAI's chat completions: Ollama, vLLM, a local server, a hosted service."""

import re
from typing import TYPE_CHECKING, Any

from compression_assets.evaluation.judging.http_errors import status_error
from compression_assets.evaluation.judging.openai_replies import read_completion
from compression_assets.evaluation.judging.replies import JudgeError, Reply, Shape
from compression_assets.evaluation.judging.settings import OpenAiJudge

if TYPE_CHECKING:
    import httpx

LARGEST_ANSWER = 1_000_000
"""Bytes of a response that are read; no verdict is longer."""

TOP = 20
"""Alternatives at each token, what DeepEval asks for and most servers' limit."""

REFUSED = (400, 422)

HELP = (
    (r"max_tokens", "length_parameter: max_completion_tokens in evaluation.judge.model"),
    (r"max_completion_tokens", "length_parameter: max_tokens in evaluation.judge.model"),
    (r"temperature", "leave_out: [temperature] in evaluation.judge.model"),
    (r"seed", "leave_out: [seed] in evaluation.judge.model"),
    (r"response_format|json_schema", "json_schema: false in evaluation.judge.model"),
)
"""What a server's refusal names, and the setting that helps."""

TOO_LONG = ("context length", "too large", "too long")
SHORTER = "a smaller max_characters in evaluation.judge, or max_tokens in evaluation.judge.model"


class OpenAiBackend:
    """One POST to <base_url>/chat/completions a question, at temperature 0 and seeded unless the study leaves it out.

    A server that refuses to give token probabilities is asked without them from then on.
    """

    parallel = True

    def __init__(self, settings: OpenAiJudge, key: str):
        self.name = f"{settings.model} at {settings.base_url}"
        self.log_probs = settings.log_probs
        self.secret = key
        fixed = {name: 0 for name in ("temperature", "seed") if name not in settings.leave_out}
        self.identity = {**settings.model_dump(mode="json", exclude={"api_key_env"}), **fixed}
        self._settings = settings
        self._fixed = fixed
        self._refuses_log_probs = False
        self._client: httpx.AsyncClient | None = None

    async def ask(self, prompt: str, shape: Shape) -> Reply:
        request = self._request(prompt, shape)
        status, headers, body = await self._post(request)
        if status in REFUSED and "logprobs" in request and "logprobs" in body.lower():
            self._refuses_log_probs = True
            status, headers, body = await self._post(self._request(prompt, shape))
        if status != 200:
            raise _refusal(status, headers, body)
        return read_completion(body, shape)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _request(self, prompt: str, shape: Shape) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": prompt}],
            **self._fixed,
            self._settings.length_parameter: self._settings.max_tokens,
        }
        if self._settings.json_schema:
            schema = {"name": shape.kind, "schema": shape.schema(), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self._settings.log_probs and not self._refuses_log_probs and shape.kind == "score":
            request |= {"logprobs": True, "top_logprobs": TOP}
        return request

    async def _post(self, request: dict[str, Any]) -> tuple[int, dict[str, str], str]:
        import httpx

        if self._client is None:
            headers = {"authorization": f"Bearer {self.secret}"} if self.secret else {}
            # Time-outs are the asker's, over a whole attempt; a key goes to no other address than the study's.
            self._client = httpx.AsyncClient(headers=headers, timeout=None, follow_redirects=False)
        address = f"{self._settings.base_url}/chat/completions"
        try:
            async with self._client.stream("POST", address, json=request) as response:
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > LARGEST_ANSWER:
                        raise JudgeError("its response does not end", transient=True)
                return response.status_code, dict(response.headers), body.decode(errors="replace")
        except httpx.HTTPError as error:
            problem = f"{address}: {error or type(error).__name__}"
        raise JudgeError(problem, transient=True)


def _refusal(status: int, headers: dict[str, str], body: str) -> JudgeError:
    """The error of a status, with the setting of the study that helps where the server names what it refuses."""
    error = status_error(status, headers, body)
    if status not in REFUSED:
        return error
    if any(words in body.lower() for words in TOO_LONG):
        setting = SHORTER
    else:
        # A sentence names what it refuses before what it wants instead.
        named = [(found.start(), what) for name, what in HELP if (found := re.search(rf"\b({name})\b", body))]
        setting = min(named)[1] if named else ""
    said = f"{error.reason}; set {setting}" if setting else error.reason
    return JudgeError(said, transient=False)
