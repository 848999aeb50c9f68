"""By which rules text is split before bytes are merged: llama.cpp's names for them, and the rules themselves.

The names are those of `tokenizer.ggml.pre` (llama.cpp, src/llama-vocab.cpp); the rules are written as the tokenizers
library wants them. A test compares every one with llama.cpp itself.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OTHERS_AND_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_OTHERS}"
QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_OTHERS}"
_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
TEKKEN = rf"{_WORD}|{_CAPITALS}|\p{{N}}|{_OTHERS_AND_SLASH}"
GPT4O = rf"{_WORD}{_ENDINGS}?|{_CAPITALS}{_ENDINGS}?|\p{{N}}{{1,3}}|{_OTHERS_AND_SLASH}"


@dataclass(frozen=True)
class Splitting:
    """names: of llama.cpp, the first is written. regex: of a split; None for GPT-2's own. single_digits: before it.

    whole_words: a word that is a token is taken as it is, whatever the merges say (`ignore_merges`). begins: whether
    llama.cpp puts the first token before a text where the file does not say.
    """

    names: tuple[str, ...]
    regex: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    begins: bool = False

    def pre_tokenizer(self) -> "PreTokenizer":
        from tokenizers import Regex, pre_tokenizers

        steps: list[PreTokenizer] = []
        if self.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.regex is not None:
            steps.append(pre_tokenizers.Split(Regex(self.regex), behavior="isolated"))
        steps.append(
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=self.regex is None)
        )
        return pre_tokenizers.Sequence(steps)


SPLITTINGS = (
    Splitting(("gpt-2", "mpt", "olmo", "phi-2", "jais", "trillion")),
    Splitting(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), single_digits=True),
    Splitting(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"),
        LLAMA3,
        whole_words=True,
        begins=True,
    ),
    Splitting(("smaug-bpe", "dbrx"), LLAMA3),
    Splitting(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), QWEN2),
    Splitting(("tekken",), TEKKEN, whole_words=True, begins=True),
    Splitting(("gpt-4o", "llama4"), GPT4O),
)


def splitting_called(name: str | None) -> Splitting | None:
    """The rules that llama.cpp calls so, or None."""
    return next((splitting for splitting in SPLITTINGS if name in splitting.names), None)


def splitting_of(tokenizer: dict[str, Any]) -> Splitting | None:
    """The rules of a tokenizer.json, or None where llama.cpp has no name for them."""
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    steps = _steps(tokenizer.get("pre_tokenizer"))
    return next(
        (
            splitting
            for splitting in SPLITTINGS
            if splitting.whole_words == whole_words
            and _steps(json.loads(splitting.pre_tokenizer().__getstate__())) == steps
        ),
        None,
    )


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[tuple[Any, ...]]:
    """What decides the pieces, in one spelling; what decides offsets only is left out."""
    if pre_tokenizer is None:
        return []
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return [step for one in pre_tokenizer["pretokenizers"] for step in _steps(one)]
    if kind == "ByteLevel":
        return [(kind, pre_tokenizer["add_prefix_space"], pre_tokenizer.get("use_regex", True))]
    if kind == "Digits":
        return [(kind, pre_tokenizer["individual_digits"])]
    if kind == "Split":
        pattern = pre_tokenizer["pattern"].get("Regex", "")
        # Qwen3.5 and some copies spell the endings out.
        pattern = pattern.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _ENDINGS)
        return [(kind, pattern, pre_tokenizer["behavior"], pre_tokenizer.get("invert", False))]
    return [(kind, json.dumps(pre_tokenizer, sort_keys=True))]
