"""Gemini as a judge, through DeepEval's own model class."""

import json
import re
from typing import Any

from compression_assets.evaluation.judging.http_errors import retry_after, status_error
from compression_assets.evaluation.judging.prompts import import_deepeval
from compression_assets.evaluation.judging.replies import JudgeError, Reply, Shape
from compression_assets.evaluation.judging.settings import GeminiJudge


class GeminiBackend:
    """Structured output at temperature 0. Without token probabilities, as DeepEval's class gives none."""

    parallel = True
    log_probs = False

    def __init__(self, settings: GeminiJudge, key: str):
        self.name = settings.model
        self.secret = key
        self.identity = {
            **settings.model_dump(mode="json", exclude={"api_key_env"}),
            "temperature": 0,
            "seed": 0,
        }
        self._model_name = settings.model
        self._model: Any = None

    async def ask(self, prompt: str, shape: Shape) -> Reply:
        import aiohttp
        import httpx
        import httpx2
        from google.genai.errors import APIError

        model = self._loaded()
        try:
            answer, cost = await model.a_generate(prompt, schema=_answer_class(shape))
        except APIError as error:
            problem = _api_error(error)
        # Google's client takes whichever of these is installed.
        except (httpx.HTTPError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            problem = JudgeError(f"{type(error).__name__}: {error}", transient=True)
        except ValueError as error:
            problem = JudgeError(f"its response cannot be read ({error})", transient=True)
        else:
            if answer is None:
                raise JudgeError("its answer is cut off or no JSON of the schema", transient=True)
            text = answer.model_dump_json() if hasattr(answer, "model_dump_json") else json.dumps(answer)
            spent = (getattr(cost, "input_tokens", 0) or 0) + (getattr(cost, "output_tokens", 0) or 0)
            return Reply(text, tokens=spent)
        raise problem

    async def close(self) -> None:
        self._model = None

    def _loaded(self) -> Any:
        if self._model is None:
            import_deepeval()
            from deepeval.models import GeminiModel

            self._model = GeminiModel(
                model=self._model_name,
                api_key=self.secret,
                temperature=0,
                use_vertexai=False,
                generation_kwargs={"seed": 0},
                # One attempt: the asker retries, and knows the budgets.
                http_options={"retry_options": {"attempts": 1}},
            )
        return self._model


def _answer_class(shape: Shape) -> Any:
    """The shape as the pydantic class that Google's client wants; bounds are checked when the answer is back."""
    from pydantic import create_model

    if shape.kind == "score":
        return create_model("Score", reason=(str, ...), score=(int, ...))
    verdict = create_model("Verdict", reason=(str, ...), verdict=(str, ...))
    return create_model("Verdicts", verdicts=(list[verdict], ...))


def _api_error(error: Any) -> JudgeError:
    headers = dict(getattr(error.response, "headers", None) or {})
    problem = status_error(int(error.code or 500), headers, str(error.message or error.status or ""))
    # Google says how long to wait in the body: "retryDelay": "34s".
    delay = re.search(r"retryDelay\W+(\d+(?:\.\d+)?)s", str(error.details))
    problem.retry_after = max(problem.retry_after, retry_after(delay[1]) if delay else 0.0)
    return problem
