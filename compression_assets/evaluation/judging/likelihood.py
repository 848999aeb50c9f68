"""A judge that is read instead of asked: how much less surprising a text becomes once another one is known.

A small model cannot give a score from 1 to 5, but its likelihoods tell a right answer from a wrong one. Every term is
the share of surprise that is removed, clip(1 - NLL(text | with) / NLL(text | without), 0, 1), NLL in nats summed over
the same tokens. The idea is that of BARTScore (Yuan et al. 2021, arXiv 2106.11520) and GPTScore (Fu et al. 2023,
arXiv 2302.04166), taken relative to what the model expects anyway, so that length and style cancel. It is not G-Eval.

- correctness = (R + P) / 2. R: the expected answer, with and without the answer before the question. P: the answer,
  with and without the expected one before it. Of several expected answers the best counts.
- relevance = sqrt(V * G), G at least GROUND. V: the question, with and without the answer. G: the answer to the
  question, with and without the context. V alone would be fooled by an answer that repeats the question.
- prompt_alignment = relevance: an answer keeps to the prompt when it is to the question and from the context.
"""

import json
import math
from pathlib import Path
from typing import Any

from compression_assets.evaluation.judging.asking import Asker
from compression_assets.evaluation.judging.prompts import CORRECTNESS, Case, cut
from compression_assets.evaluation.judging.replies import JudgeError, Reply, Shape
from compression_assets.store.code_fingerprints import code_fingerprint

NATS = Shape("nats")

GROUND = 0.02
"""Least G: a wrong answer is no less relevant for contradicting the context, which makes it more surprising. Chosen
from 0, 0.01, 0.02, 0.05, 0.1, 0.2 on the planted questions for design: of 120 pairs 0 orders 105, this 118."""


async def score(metric: str, case: Case, asker: Asker, max_characters: int) -> float:
    """A metric of a case in 0..1; `case.answer` is not empty. Raises JudgeError as `Asker.ask` does."""
    context, question, answer = (
        cut(text, max_characters) for text in (case.context, case.question, case.answer)
    )
    statement = answer.rstrip(" .")

    async def removed(text: str, known: str, unknown: str) -> float:
        without = await _nats(asker, unknown, text)
        return min(1.0, max(0.0, 1 - await _nats(asker, known, text) / without)) if without > 0 else 0.0

    asked = f"Question: {question}\nAnswer:"
    if metric == CORRECTNESS:
        recalls = [
            await removed(expected, f"{statement}.\n{asked}", asked)
            for expected in dict.fromkeys(case.expected)
        ]
        restates = [
            await removed(answer, f"{asked} {expected.rstrip(' .')}.\nThe same in other words:", asked)
            for expected in dict.fromkeys(case.expected)
        ]
        return max((recall + restate) / 2 for recall, restate in zip(recalls, restates, strict=True))
    to_the_question = await removed(question, f"Answer: {statement}.\nQuestion:", "Question:")
    from_the_context = await removed(answer, f"{context}\n{asked}", asked)
    return math.sqrt(to_the_question * max(GROUND, from_the_context))


async def _nats(asker: Asker, before: str, text: str) -> float:
    reply = await asker.ask(json.dumps({"before": before, "text": text}), NATS)
    return float(json.loads(reply.text)["nats"])


class LikelihoodBackend:
    """A model directory that says how many nats a text has after another; loaded at the first question.

    weights: data version of the directory, so that another model's answers are never taken for this one's. Nothing is
    batched: rounding would depend on the neighbours, and an interrupted run would end in other numbers.
    """

    log_probs = False
    parallel = False
    secret = ""

    def __init__(self, directory: Path, weights: str, device: str, name: str):
        from compression_assets.machine.precision import compute_dtype

        self.name = name
        self._dtype = compute_dtype(device)
        self.identity = {
            "kind": "likelihood",
            "weights": weights,
            "precision": str(self._dtype).removeprefix("torch."),
            "code": code_fingerprint(f"{__name__}:LikelihoodBackend"),
        }
        self._directory = directory
        self._device = device
        self._loaded: tuple[Any, Any] | None = None

    async def ask(self, prompt: str, shape: Shape) -> Reply:
        """Nats of `text` after `before`. Raises JudgeError when both are longer than the model can read."""
        wanted = json.loads(prompt)
        model, tokenizer = self._load()
        # What a model answered is data: a role header inside it stays text.
        before, text = (
            tokenizer(part, add_special_tokens=False, split_special_tokens=True).input_ids
            for part in (wanted["before"], " " + wanted["text"].strip())
        )
        before = [_first_token(tokenizer), *before]
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit and len(before) + len(text) > limit:
            raise JudgeError(f"the text has more than the {limit:,} tokens that it can read", transient=False)
        nats = _summed_nats(model, before, text, self._device)
        return Reply(json.dumps({"nats": nats}), tokens=len(before) + len(text))

    async def close(self) -> None:
        self._loaded = None

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoTokenizer

            from compression_assets.evaluation.grouped_attention import use_fastest_attention
            from compression_assets.weights.checkpoints import load_for_scoring

            tokenizer = AutoTokenizer.from_pretrained(
                self._directory, local_files_only=True, trust_remote_code=False
            )
            model = load_for_scoring(self._directory, self._device, self._dtype)
            use_fastest_attention(model)
            self._loaded = model, tokenizer
        return self._loaded


def _first_token(tokenizer: Any) -> int:
    """What begins a text; models without a token for that are used to their end-of-text one there."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return 0 if first is None else int(first)


def _summed_nats(model: Any, before: list[int], text: list[int], device: str) -> float:
    import torch

    ids = torch.tensor([before + text], device=device)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, logits_to_keep=len(text) + 1).logits[0, :-1]
    chosen = torch.tensor(text, device=device)[:, None]
    return -float(logits.float().log_softmax(-1).gather(1, chosen).double().sum())
