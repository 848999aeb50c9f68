"""How a long text is cut into windows that a model can read, each of its tokens predicted at most once.

Two conventions are what published figures rest on: that of lm-evaluation-harness (Gao et al.,
`lm_eval.utils.get_rolling_token_windows`) and that of transformers' guide "Perplexity of fixed-length models".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from compression_assets.errors import StudyError
from compression_assets.sources.texts import TextSource
from compression_assets.strict import Strict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int, int]
"""(begin, first, end): of ids[begin:end - 1], which are read, the last end - first predict ids[first:end]."""

BETWEEN_DOCUMENTS = "\n\n"
"""What transformers' guide puts between the rows of a data set."""

GAP = re.compile(r"(?<!\s)\s")
"""The first white space after a word."""


class TextSettings(Strict):
    """Perplexity of running text, such as the test set of WikiText-2.

    windows: `lm_eval`: each document by itself after the token that begins a text, every token predicted once, as
    lm-evaluation-harness; also gives word perplexity and bits per byte. `transformers`: documents joined by empty
    lines, as in its guide on perplexity, on which most papers on compression rest. max_length: tokens that a model
    reads at once; with another one, figures do not compare. stride: tokens by which windows move on; less than
    max_length leaves each token more context; left out, max_length. limit: windows scored, from the beginning.
    """

    source: TextSource
    windows: Literal["lm_eval", "transformers"] = "lm_eval"
    max_length: int = Field(default=2048, ge=2)
    stride: PositiveInt | None = None
    limit: PositiveInt | None = None

    @model_validator(mode="after")
    def _no_token_is_skipped(self) -> Self:
        if self.stride is not None and self.stride > self.max_length:
            raise ValueError(f"stride must be at most max_length ({self.max_length}), or tokens are skipped")
        return self

    @property
    def step(self) -> int:
        """Tokens by which windows move on."""
        return self.stride or self.max_length

    def about(self) -> str:
        """What decides the figures, beside the text."""
        first = f", the first {self.limit:,} windows" if self.limit else ""
        return f"windows of {self.max_length:,} tokens, stride {self.step:,}, {self.windows}{first}"


@dataclass(frozen=True)
class Window:
    """A part of a text.

    item: where in the text its predicted part is, the same for every model with these tokens. ids: what is read, and
    the last token to predict. predicted: how many of them, from the end. words, utf8_bytes: of the text predicted.
    """

    item: str
    ids: list[int]
    predicted: int
    words: int
    utf8_bytes: int


def windows_of(
    texts: list[str], tokenizer: "PreTrainedTokenizerBase", settings: TextSettings
) -> list[Window]:
    """All windows of some documents, in their order.

    lm_eval: each document by itself, after the token that begins a text (or, without one, that ends it), so that every
    token of it is predicted. transformers: documents joined by empty lines; the first token of what a model reads is
    not predicted. Needs a tokenizer that knows where in a text its tokens stand (any of the library `tokenizers`).
    Raises StudyError where lm_eval has no token to begin with.
    """
    if settings.windows == "transformers":
        text = BETWEEN_DOCUMENTS.join(texts)
        found = tokenizer(text, return_offsets_mapping=True, verbose=False)
        spans = sliding(len(found["input_ids"]), settings.max_length, settings.step)
        return list(_windows("0", text, found["input_ids"], found["offset_mapping"], spans))
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise StudyError(
            "evaluation.text.windows: the tokenizer has no token that begins or ends a text: "
            "write windows: transformers"
        )
    windows: list[Window] = []
    for number, text in enumerate(texts):
        found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        ids, offsets = [prefix, *found["input_ids"]], [(0, 0), *found["offset_mapping"]]
        windows += _windows(
            str(number), text, ids, offsets, rolling(len(ids), settings.max_length, settings.step)
        )
    return windows


def rolling(ids: int, max_length: int, stride: int) -> Iterator[Span]:
    """Windows of lm-evaluation-harness over so many ids, the first of which is the prefix.

    Each reads at most `max_length` of them. The first predicts as many, every later one the next `stride`, from all
    that it can read before them: the harness's `context_len` is max_length - stride + 1, and 1 in its tasks.
    """
    first, step = 1, max_length
    while first < ids:
        end = min(first + step, ids)
        yield max(0, end - 1 - max_length), first, end
        first, step = end, stride


def sliding(ids: int, max_length: int, stride: int) -> Iterator[Span]:
    """Windows of transformers' guide: one every `stride` ids, predicting what none before it has."""
    first = end = 0
    for begin in range(0, ids, stride):
        first, end = max(end, begin + 1), min(begin + max_length, ids)
        if first < end:
            yield begin, first, end
        if end == ids:
            return


def _windows(
    document: str, text: str, ids: list[int], offsets: list[tuple[int, int]], spans: Iterator[Span]
) -> Iterator[Window]:
    """Windows share out the whole text: their bytes add up to its bytes, their words to its words."""
    start = 0
    for begin, first, end in spans:
        stop = len(text) if end == len(ids) else max(start, offsets[end - 1][1])
        yield Window(
            item=f"document {document}, tokens {first}-{end - 1}, characters {start}-{stop}",
            ids=ids[begin:end],
            predicted=end - first,
            words=_words(text, start, stop),
            utf8_bytes=len(text[start:stop].encode()),
        )
        start = stop


def _words(text: str, start: int, stop: int) -> int:
    """Of text[start:stop]: the gaps that begin there, and one more for the document's first word.

    Over a document that is len(re.split(r"\\s+", document)), as lm-evaluation-harness counts.
    """
    return sum(1 for _ in GAP.finditer(text, start, stop)) + (start == 0)
