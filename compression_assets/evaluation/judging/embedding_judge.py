"""A judge by sentence embeddings: how close an answer lies to the expected one and to the question.

correctness = (cos(expected, answer) + cos(question and expected, answer)) / 2, of several expected answers the best;
relevance = prompt_alignment = cos(question, answer); each clipped to 0..1. It shares nothing with a language model's
likelihoods, which makes agreement between the two worth something.
"""

import json
from pathlib import Path

from compression_assets.evaluation.embedding import Embed, EmbeddingSource, embedder
from compression_assets.evaluation.judging.asking import Asker
from compression_assets.evaluation.judging.prompts import CORRECTNESS, Case, cut
from compression_assets.evaluation.judging.replies import Reply, Shape
from compression_assets.store.code_fingerprints import code_fingerprint

COSINE = Shape("cosine")


async def score(metric: str, case: Case, asker: Asker, max_characters: int) -> float:
    """A metric of a case in 0..1. Raises JudgeError as `Asker.ask` does."""
    question, answer = cut(case.question, max_characters), cut(case.answer, max_characters)
    if metric != CORRECTNESS:
        return await _closeness(asker, question, answer)
    found = [
        (
            await _closeness(asker, expected, answer)
            + await _closeness(asker, f"{question} {expected}", answer)
        )
        / 2
        for expected in dict.fromkeys(case.expected)
    ]
    return max(found)


async def _closeness(asker: Asker, one: str, other: str) -> float:
    reply = await asker.ask(json.dumps({"one": one, "other": other}), COSINE)
    return min(1.0, max(0.0, float(json.loads(reply.text)["cosine"])))


class EmbeddingBackend:
    """A sentence-transformers model, loaded at the first question."""

    log_probs = False
    parallel = False
    secret = ""

    def __init__(self, source: EmbeddingSource, downloads: Path, name: str):
        self.name = name
        self.identity = {
            "kind": "embedding",
            "model": source.model_dump(mode="json"),
            "code": code_fingerprint(f"{__name__}:EmbeddingBackend"),
        }
        self._source = source
        self._downloads = downloads
        self._embed: Embed | None = None

    async def ask(self, prompt: str, shape: Shape) -> Reply:
        """Cosine of `one` and `other`, each embedded by itself."""
        if self._embed is None:
            self._embed = embedder(self._source, self._downloads)
        wanted = json.loads(prompt)
        one, other = (self._embed([wanted[name]])[0] for name in ("one", "other"))
        return Reply(json.dumps({"cosine": float(one @ other)}))

    async def close(self) -> None:
        self._embed = None
