"""A judge behind OpenAI's chat completions: Ollama, vLLM, a local server, a hosted service."""

import json
import re
from typing import TYPE_CHECKING, Any

from compression_assets.evaluation.judging.http_errors import status_error
from compression_assets.evaluation.judging.replies import JudgeError, Reply, Shape
from compression_assets.evaluation.judging.settings import OpenAiJudge

if TYPE_CHECKING:
    import httpx

LARGEST_ANSWER = 1_000_000
"""Bytes of a response that are read; no verdict is longer."""

LONGEST_REASON = 512
"""Tokens that the judge may write."""

_KEY = re.compile(r'"score"\s*:\s*$')
_SCORE = re.compile(r'"score"\s*:\s*(\d+)')

TOP = 20
"""Alternatives at each token, what DeepEval asks for and most servers' limit."""


class OpenAiBackend:
    """One POST to <base_url>/chat/completions a question, temperature 0, seeded."""

    parallel = True

    def __init__(self, settings: OpenAiJudge, key: str):
        self.name = f"{settings.model} at {settings.base_url}"
        self.log_probs = settings.log_probs
        self.secret = key
        self.identity = {
            **settings.model_dump(mode="json", exclude={"api_key_env"}),
            "temperature": 0,
            "seed": 0,
        }
        self._settings = settings
        self._client: httpx.AsyncClient | None = None

    async def ask(self, prompt: str, shape: Shape) -> Reply:
        status, headers, body = await self._post(self._request(prompt, shape))
        if status != 200:
            raise status_error(status, headers, body)
        try:
            content = json.loads(body)
            choice = content["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str):
                raise TypeError(f"no text but {type(text).__name__}")
            spent = (content.get("usage") or {}).get("total_tokens")
            return Reply(text, _top(choice, text) if shape.kind == "score" else None, int(spent or 0))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            problem = f"its response is no chat completion ({type(error).__name__}: {error})"
        raise JudgeError(problem, transient=True)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _request(self, prompt: str, shape: Shape) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": LONGEST_REASON,
        }
        if self._settings.json_schema:
            schema = {"name": shape.kind, "schema": shape.schema(), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self._settings.log_probs and shape.kind == "score":
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


def _top(choice: dict[str, Any], text: str) -> tuple[tuple[str, float], ...] | None:
    """Alternatives at the token of the score; None where it has no token of its own after its key.

    A reason may hold numbers as well, before or after the score.
    """
    score = _SCORE.search(text)
    written = ""
    for token in ((choice.get("logprobs") or {}).get("content")) or []:
        word = str(token["token"])
        if score and word.strip() == score[1] and _KEY.search(written):
            return tuple(
                (str(other["token"]).strip(), float(other["logprob"])) for other in token["top_logprobs"]
            )
        written += word
    return None
