"""Clarity of an answer: the mean of fluency, coherence and readability, each in 0..1 (arXiv 2511.19495, section 3).

- fluency = 1 / (1 + ln perplexity), the perplexity of the answer alone under a fixed language model that is the same
  for every model judged. A loop is likely under any language model, so it rewards degeneration: see `repetition`. It
  falls as perplexity rises: 1 at perplexity 1, one half at e, 0.18 at 100, never below 0. The paper gives no formula.
  This one needs no ceiling above which all answers would look alike. The first token is predicted from the token that
  separates documents, so that an answer of one token has a perplexity too.
- coherence = cosine of the sentence embeddings of answer and context; a negative one counts as 0.
- readability = Flesch reading ease, clipped to 0..100, over 100. Syllables are counted by hyphenation.

An answer without a word is 0 in all of them: it says nothing. An answer of one word has the values that the
formulas give it: its readability is 1.00 for one syllable, 0.37 for two and 0.00 from three on, so that the
readability of short answers says little.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.evaluation.embedding import Embed
from compression_assets.store.reports import Report, no_report

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DOCUMENT_END = "<|endoftext|>"
"""Separates documents in the pre-training of GPT-2, SmolLM2 and Qwen2.5."""

_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Clarity:
    """Of one answer, each in 0..1."""

    fluency: float
    coherence: float
    readability: float

    @property
    def clarity(self) -> float:
        return (self.fluency + self.coherence + self.readability) / 3


SILENT = Clarity(0.0, 0.0, 0.0)


def says_something(answer: str) -> bool:
    """Whether there is a letter or digit in it."""
    return bool(_WORD.search(answer))


def measure_clarity(
    answers: Sequence[str],
    contexts: Sequence[str],
    fluency_model: Path,
    embed: Embed,
    batch_size: int,
    device: str = "cpu",
    report: Report = no_report,
) -> list[Clarity]:
    """Clarity of each answer to a question about its context. fluency_model: a causal language model's directory."""
    spoken = [index for index, answer in enumerate(answers) if says_something(answer)]
    result = [SILENT] * len(answers)
    if not spoken:
        return result
    texts = [answers[index] for index in spoken]
    perplexities = answer_perplexities(texts, fluency_model, batch_size, device, report)
    cosines = coherences(texts, [contexts[index] for index in spoken], embed)
    for index, text, perplexity, cosine in zip(spoken, texts, perplexities, cosines, strict=True):
        result[index] = Clarity(fluency(perplexity), cosine, readability(text))
    return result


def fluency(perplexity: float) -> float:
    """perplexity: at least 1."""
    return 1 / (1 + math.log(perplexity))


def readability(text: str) -> float:
    """Flesch reading ease by textstat, clipped to 0..100, over 100."""
    import textstat
    from textstat.backend.counts import _count_syllables

    # Its pronouncing dictionary is downloaded at the first use, and figures would depend on whether that worked.
    # Without it every word is hyphenated, as textstat does with words that the dictionary does not have.
    _count_syllables.get_cmudict = lambda lang: None
    return min(max(textstat.flesch_reading_ease(text), 0.0), 100.0) / 100


def answer_perplexities(
    texts: Sequence[str], model_dir: Path, batch_size: int, device: str = "cpu", report: Report = no_report
) -> list[float]:
    """exp(mean negative log-likelihood of a text's tokens, the first one included), text by text, without context."""
    from transformers import AutoTokenizer

    from compression_assets.evaluation.perplexity import score
    from compression_assets.machine.precision import compute_dtype
    from compression_assets.text.datasets import TokenDataset, TokenRow
    from compression_assets.weights.checkpoints import load_for_scoring

    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
    model = load_for_scoring(model_dir, device, compute_dtype(device))
    if device == "cpu":
        model.set_attn_implementation(
            "eager"
        )  # as for perplexity: rounding that does not depend on the batch
    start = _document_end(tokenizer)
    limit = getattr(model.config, "max_position_embeddings", None) or 2048
    rows = []
    for index, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: limit - 1]
        rows.append(TokenRow(str(index), [start, *ids], [False] + [True] * len(ids)))
    scored = score(model, TokenDataset(rows), batch_size, report)
    # A likelihood above 1 is a rounding error of a text that the model is certain of.
    return [max(1.0, math.exp(nll / tokens)) for nll, tokens in zip(scored.nll, scored.tokens, strict=True)]


def coherences(texts: Sequence[str], contexts: Sequence[str], embed: Embed) -> list[float]:
    """Cosine of each text with its context, at least 0. Each context is embedded once."""
    passages = list(dict.fromkeys(contexts))
    vectors = embed([*texts, *passages])
    of_passage = dict(zip(passages, vectors[len(texts) :], strict=True))
    return [
        min(1.0, max(0.0, float((vector * of_passage[context]).sum())))
        for vector, context in zip(vectors[: len(texts)], contexts, strict=True)
    ]


def _document_end(tokenizer: "PreTrainedTokenizerFast") -> int:
    known = tokenizer.get_vocab()
    token = known.get(DOCUMENT_END, tokenizer.bos_token_id)
    token = tokenizer.eos_token_id if token is None else token
    if token is None:
        raise ValueError(f"{tokenizer.name_or_path} has no token to begin a text with")
    return int(token)
