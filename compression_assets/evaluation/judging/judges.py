"""From a study's judge to somebody who can be asked, and that somebody as a model that DeepEval's metrics accept."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.evaluation.embedding import described
from compression_assets.evaluation.judging import embedding_judge, likelihood
from compression_assets.evaluation.judging.asking import Asker, Backend
from compression_assets.evaluation.judging.prompts import INSTRUCTIONS, Case, import_deepeval, metric
from compression_assets.evaluation.judging.replies import SCALE, Reply, Shape
from compression_assets.evaluation.judging.settings import (
    EmbeddingJudge,
    GeminiJudge,
    JudgeModel,
    LanguageModelJudge,
    LikelihoodJudge,
)


def judge_name(model: JudgeModel) -> str:
    """How tables name a judge. No secrets."""
    if isinstance(model, LanguageModelJudge):
        name = "the base model" if model.source is None else _source_name(model.source)
        return f"{name} (by likelihood)" if isinstance(model, LikelihoodJudge) else name
    if isinstance(model, EmbeddingJudge):
        return f"{described(model.model)} (by embedding)"
    return model.model if isinstance(model, GeminiJudge) else f"{model.model} at {model.base_url}"


def open_backend(
    model: JudgeModel, directory: Path | None, weights: str, device: str, downloads: Path
) -> Backend:
    """Somebody who answers. directory, weights: of a local judge's model, and its data version.

    Raises StudyError when the environment lacks the key.
    """
    if isinstance(model, EmbeddingJudge):
        return embedding_judge.EmbeddingBackend(model.model, downloads, judge_name(model))
    if isinstance(model, LanguageModelJudge):
        from compression_assets.evaluation.judging.local_judge import LocalBackend

        assert directory is not None
        backend = likelihood.LikelihoodBackend if isinstance(model, LikelihoodJudge) else LocalBackend
        return backend(directory, weights, device, judge_name(model))
    key = _key(model.api_key_env, judge_name(model))
    if isinstance(model, GeminiJudge):
        from compression_assets.evaluation.judging.gemini_judge import GeminiBackend

        return GeminiBackend(model, key)
    from compression_assets.evaluation.judging.openai_judge import OpenAiBackend

    return OpenAiBackend(model, key)


def metric_of(name: str, case: Case, asker: Asker, max_characters: int) -> Any:
    """A DeepEval metric of one case: G-Eval or prompt alignment where the judge is asked, else what is read from it."""
    if isinstance(asker.backend, likelihood.LikelihoodBackend):
        read = likelihood.score
    elif isinstance(asker.backend, embedding_judge.EmbeddingBackend):
        read = embedding_judge.score
    else:
        return metric(name, deepeval_model(asker))
    import_deepeval()
    from deepeval.metrics import BaseMetric

    class ReadMetric(BaseMetric):
        def __init__(self) -> None:
            self.threshold = 0.5
            self.async_mode = True

        def measure(self, test_case: Any, *_: Any, **__: Any) -> float:
            raise NotImplementedError("judges are read asynchronously")

        async def a_measure(self, test_case: Any, *_: Any, **__: Any) -> float:
            self.score = await read(name, case, asker, max_characters)
            self.success = self.score >= self.threshold
            return self.score

        def is_successful(self) -> bool:
            return bool(self.success)

        @property
        def __name__(self) -> str:
            return f"{name} ({asker.backend.name})"

    return ReadMetric()


def deepeval_model(asker: Asker) -> Any:
    """The judge as a DeepEvalBaseLLM. Its answers are objects of DeepEval's schemas, or a completion with token
    probabilities for G-Eval's weighting; DeepEval asks again without them where the judge gives none."""
    import_deepeval()
    from deepeval.models import DeepEvalBaseLLM

    class Judge(DeepEvalBaseLLM):
        def load_model(self) -> Any:
            return self

        def get_model_name(self) -> str:
            return asker.backend.name

        def generate(self, *_: Any, **__: Any) -> str:
            raise NotImplementedError("judges are asked asynchronously")

        async def a_generate(self, prompt: str, schema: Any = None) -> Any:
            shapes = {"ReasonScore": Shape("score"), "Verdicts": Shape("verdicts", len(INSTRUCTIONS))}
            # DeepEval takes a TypeError for "no schemas here" and would then parse free text.
            shape = shapes.get(getattr(schema, "__name__", ""))
            if shape is None:
                raise RuntimeError(f"DeepEval asks for {schema}, which no judge here answers")
            reply = await asker.ask(prompt, shape)
            return schema.model_validate_json(reply.text)

        async def a_generate_raw_response(self, prompt: str, top_logprobs: int = 0) -> Any:
            if not asker.backend.log_probs:
                raise AttributeError("token probabilities")  # DeepEval's sign to ask through a_generate
            return _completion(await asker.ask(prompt, Shape("score"))), 0.0

    return Judge(asker.backend.name)


def _completion(reply: Reply) -> Any:
    """As much of an OpenAI chat completion as DeepEval's weighting reads."""
    score = str(json.loads(reply.text)["score"])
    logprobs = None
    if reply.top is not None:
        # Other numbers than the scale's have no place in a mean over it.
        top = [SimpleNamespace(token=token, logprob=value) for token, value in reply.top if token in SCALE]
        logprobs = SimpleNamespace(content=[SimpleNamespace(token=score, top_logprobs=top)])
    choice = SimpleNamespace(message=SimpleNamespace(content=reply.text), logprobs=logprobs)
    return SimpleNamespace(choices=[choice])


def dead_judge(asker: Asker, asset: str) -> StudyError:
    """The sentence about a judge that answers nothing."""
    return StudyError(
        f"the judge {asker.backend.name} answered none of the first {asker.failures} questions "
        f"({asker.last_reason}); see that it runs, accepts the key and is named right in evaluation.judge.model, "
        f"then run again: what it has answered before is kept, and `compression run --select '{asset}*'` goes on there"
    )


def _key(variable: str | None, judge: str) -> str:
    if variable is None:
        return ""
    if not (key := os.environ.get(variable, "").strip()):
        raise StudyError(
            f"the judge {judge} needs its key in the environment: export {variable}=… and run again"
        )
    return key


def _source_name(source: Any) -> str:
    settings = source.model_dump(mode="json")
    return str(
        next(settings[name] for name in ("repo", "file", "path", "architecture") if settings.get(name))
    )
