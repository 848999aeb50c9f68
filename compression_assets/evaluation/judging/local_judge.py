"""A transformers model on this machine as a judge. It writes nothing: its verdict is read from token probabilities.

The beginning of the JSON answer is put into its mouth, up to where the score or verdict stands, and the
probabilities of the allowed labels there are its answer. So it cannot fail to parse, and needs one forward pass.

A metric's prompts begin alike, with its steps and rubric, so the keys and values of that beginning are kept between
questions. It always has a forward pass of its own, kept or not, so that an answer does not depend on what was asked
before. (A model that remembers otherwise than by attention, as Mamba, reads each prompt whole.) For the same reason
nothing is batched: rounding would depend on the neighbours, and an interrupted run would end in other numbers. (On a
CPU a batch of 8 gains a third at most.)
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.prompts import CASE_MARKS
from compression_assets.evaluation.judging.replies import SCALE, VERDICTS, JudgeError, Reply, Shape
from compression_assets.store.code_fingerprints import code_fingerprint
from compression_assets.text.chat_template import ChatTemplate
from compression_assets.text.conversation import Message

if TYPE_CHECKING:
    import torch

REASON = "read from token probabilities"
_SLOT = "\x00"


class LocalBackend:
    """A model directory, loaded at the first question.

    weights: data version of the directory, so that another model's answers are never taken for this one's.
    """

    log_probs = True
    parallel = False
    secret = ""

    def __init__(self, directory: Path, weights: str, device: str, name: str):
        from compression_assets.machine.precision import compute_dtype

        self.name = name
        self._dtype = compute_dtype(device)
        self.identity = {
            "kind": "local",
            "weights": weights,
            "precision": str(self._dtype).removeprefix("torch."),
            "code": code_fingerprint("compression_assets.evaluation.judging.local_judge"),
        }
        self._directory = directory
        self._device = device
        self._reader: _Reader | None = None

    async def ask(self, prompt: str, shape: Shape) -> Reply:
        if self._reader is None:
            self._reader = _Reader(self._directory, self._device, self._dtype)
        if shape.kind == "score":
            return _score(self._reader, prompt)
        return _verdicts(self._reader, prompt, shape.count)

    async def close(self) -> None:
        self._reader = None


def _score(reader: "_Reader", prompt: str) -> Reply:
    top = reader.probabilities(prompt, ['{"score": '], SCALE)
    best = max(top, key=lambda pair: pair[1])[0]
    return Reply(json.dumps({"reason": REASON, "score": int(best)}), tuple(top))


def _verdicts(reader: "_Reader", prompt: str, count: int) -> Reply:
    """One verdict after the other, each after those before it, as the model would have written them."""
    begun = ['{"verdicts": [{"verdict": "']
    verdicts = []
    for _ in range(count):
        top = reader.probabilities(prompt, begun, VERDICTS)
        word, log_probability = max(top, key=lambda pair: pair[1])
        verdicts.append({"verdict": word, "reason": f"{REASON}: {math.exp(log_probability):.2f}"})
        begun.append(f'{word}"}}, {{"verdict": "')
    return Reply(json.dumps({"verdicts": verdicts}))


class _Reader:
    """The model, its tokenizer, and the keys and values of the last prompt's pieces."""

    def __init__(self, directory: Path, device: str, dtype: "torch.dtype"):
        from transformers import AutoTokenizer, DynamicCache

        from compression_assets.evaluation.grouped_attention import use_fastest_attention
        from compression_assets.weights.checkpoints import load_for_scoring

        self._model = load_for_scoring(directory, device, dtype)
        self._tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        use_fastest_attention(self._model)
        self._cache: Any = DynamicCache()
        self._in_pieces = _remembers_by_attention_alone(self._model)
        self._held: list[list[int]] = []
        self._before, self._after = self._template()

    def probabilities(
        self, prompt: str, begun: list[str], labels: tuple[str, ...]
    ) -> list[tuple[str, float]]:
        """(label, log-probability) where the answer goes on after `begun` (its parts so far), over `labels` alone.

        Raises JudgeError when the prompt is longer than the model can read.
        """
        import torch

        head, rest = self._pieces(prompt)
        opening, choices = self._branch(begun[-1], labels)
        # The last part's end may belong to the label's token, so only earlier parts are written out.
        parts = [*map(self._plain, begun[:-1]), opening]
        pieces = [piece for piece in (head, rest + parts[0], *parts[1:]) if piece]
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit and sum(map(len, pieces)) >= limit:
            raise JudgeError(
                f"the prompt has more than the {limit:,} tokens that it can read", transient=False
            )
        logits = self._read(pieces)[torch.tensor(choices, device=self._model.device)]
        return list(zip(labels, logits.log_softmax(0).tolist(), strict=True))

    def _read(self, pieces: list[list[int]]) -> "torch.Tensor":
        """Next-token logits [vocabulary] in float32 after all pieces; those still held are not read again."""
        import torch

        if not self._in_pieces:
            ids = torch.tensor([[token for piece in pieces for token in piece]], device=self._model.device)
            with torch.inference_mode():
                return self._model(input_ids=ids, use_cache=False).logits[0, -1].float()
        kept = 0
        while kept < min(len(self._held), len(pieces) - 1) and self._held[kept] == pieces[kept]:
            kept += 1
        if surplus := sum(map(len, self._held[kept:])):
            self._cache.crop(-surplus)
        self._held = pieces[:kept]
        with torch.inference_mode():
            for piece in pieces[kept:]:
                ids = torch.tensor([piece], device=self._model.device)
                output = self._model(
                    input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
                )
                self._held.append(piece)
        return output.logits[0, -1].float()

    def _pieces(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids of the chat around the prompt: what all prompts of a metric begin with, and the rest."""
        place = next((at + len(mark) for mark in CASE_MARKS if (at := prompt.find(mark)) >= 0), 0)
        # What a model answered is data: a role header inside it stays text.
        head, rest = (
            self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
            if text
            else []
            for text in (prompt[:place], prompt[place:])
        )
        return self._before + head, rest + self._after

    def _template(self) -> tuple[list[int], list[int]]:
        """Token ids before and after a user's message; without a chat template, what begins a text and a new line."""
        if not self._tokenizer.chat_template:
            return list(self._tokenizer("").input_ids), self._plain("\n")
        # Not the tokenizer's own call: a template that writes today's date would ask another question every day.
        text = ChatTemplate(self._tokenizer).text([Message("user", _SLOT)], reply=True)
        before, _, after = text.partition(_SLOT)
        return self._plain(before), self._plain(after)

    def _branch(self, begun: str, labels: tuple[str, ...]) -> tuple[list[int], list[int]]:
        """Ids of what the labels have in common after `begun`, and the id with which each label then goes its way."""
        written = [self._plain(begun + label) for label in labels]
        common = 0
        while all(len(ids) > common for ids in written) and len({ids[common] for ids in written}) == 1:
            common += 1
        choices = [ids[common] for ids in written if len(ids) > common]
        if len(set(choices)) < len(labels):
            raise StudyError(
                f"{self._tokenizer.name_or_path} cannot judge: its tokenizer does not tell {', '.join(labels)} apart "
                "by one token; name another model in evaluation.judge.model"
            )
        return written[0][:common], choices

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)


def _remembers_by_attention_alone(model: Any) -> bool:
    """Whether a model keeps nothing but keys and values of what it has read: a recurrent state cannot be cropped."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    kinds = getattr(model.config, "layer_types", None) or ()
    layers = DynamicCache(config=model.config).layers
    return (
        not model._is_stateful
        and all(kind.endswith("attention") and not kind.startswith("linear") for kind in kinds)
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    )
