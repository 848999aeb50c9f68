"""The tokenizer of a GGUF file as one of transformers: byte-level BPE ("gpt2") and SentencePiece's BPE ("llama").

transformers' own conversion takes every byte-level BPE for GPT-2's or Qwen2's, and confuses bos and eos of a Llama.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.sources.gguf_metadata import Metadata
from compression_assets.sources.gguf_splitting import SPLITTINGS, splitting_called
from compression_assets.tables import shortened

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPACE = "▁"
"""What SentencePiece writes for a space (U+2581)."""

NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""transformers' name of a token -> GGUF's."""

NEEDED = {"gpt2": ("tokens", "merges"), "llama": ("tokens", "scores", "token_type")}
"""Kind of tokenizer -> the lists without which it is none."""


def read_tokenizer(metadata: Metadata, path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer with its special tokens and chat template.

    Raises StudyError, naming the key, where text would be split by rules that are not known here.
    """
    from transformers import PreTrainedTokenizerFast

    check_tokenizer(metadata, path)
    values = metadata.values
    tokens = values["tokenizer.ggml.tokens"]
    if values["tokenizer.ggml.model"] == "gpt2":
        backend, begins = _byte_level(values)
    else:
        backend, begins = _sentencepiece(values), True
    _add_special(backend, values)
    named = {
        f"{ours}_token": tokens[index]
        for ours, theirs in NAMES.items()
        if (index := values.get(f"tokenizer.ggml.{theirs}_token_id")) is not None and index < len(tokens)
    }
    _add_ends(backend, values, named, begins)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=_template(values),
        clean_up_tokenization_spaces=False,
        **named,
    )


def check_tokenizer(metadata: Metadata, path: Path) -> None:
    """StudyError as `read_tokenizer`, from what the file says alone: nothing is built."""
    values = metadata.values
    kind = str(values.get("tokenizer.ggml.model"))
    if kind not in NEEDED:
        raise StudyError(
            f"{path} has a tokenizer of the kind tokenizer.ggml.model = {shortened(repr(kind))}; gpt2 and llama are "
            "read: give the directory that the file was made from (kind: directory or hub)."
        )
    lists = {name: values.get(f"tokenizer.ggml.{name}") for name in NEEDED[kind]}
    if missing := [name for name, found in lists.items() if not isinstance(found, list)]:
        raise StudyError(f"the GGUF file {path} does not state tokenizer.ggml.{missing[0]}: make it anew.")
    for name in ("scores", "token_type"):
        found = values.get(f"tokenizer.ggml.{name}")
        if found is not None and len(found) != len(values["tokenizer.ggml.tokens"]):
            raise StudyError(
                f"{path} has {len(values['tokenizer.ggml.tokens']):,} tokens, but {len(found):,} of "
                f"tokenizer.ggml.{name}: make it anew."
            )
    rules = values.get("tokenizer.ggml.pre")
    if kind == "gpt2" and splitting_called(rules) is None:
        known = ", ".join(name for splitting in SPLITTINGS for name in splitting.names)
        raise StudyError(
            f"{path} says tokenizer.ggml.pre = {shortened(repr(rules))}, rules of splitting text that are not known "
            f"here ({known}): give the directory that the file was made from (kind: directory or hub)."
        )


def _byte_level(values: dict[str, Any]) -> tuple["Tokenizer", bool]:
    from tokenizers import Tokenizer, decoders, models

    splitting = splitting_called(values["tokenizer.ggml.pre"])
    assert splitting is not None
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    model = models.BPE(vocab=_vocabulary(values), merges=merges, ignore_merges=splitting.whole_words)
    backend = Tokenizer(model)
    backend.pre_tokenizer = splitting.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend, splitting.begins


def _sentencepiece(values: dict[str, Any]) -> "Tokenizer":
    """Pairs merge in the order of their scores; what is no token becomes bytes (SentencePiece's BPE)."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = values["tokenizer.ggml.tokens"]
    unknown = values.get("tokenizer.ggml.unknown_token_id")
    model = models.BPE(
        vocab=_vocabulary(values),
        merges=merges_by_score(tokens, values["tokenizer.ggml.scores"], values["tokenizer.ggml.token_type"]),
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    prefix = values.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def merges_by_score(tokens: list[str], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    """Every way to make an ordinary token of two others, best score first (transformers' SentencePieceExtractor)."""
    import gguf

    ranks = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == gguf.TokenType.NORMAL
    }
    found = []
    for token, index in ranks.items():
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        found += [(scores[index], pair) for pair in pairs]
    found.sort(key=lambda one: -one[0])
    return [pair for _, pair in found]


def _vocabulary(values: dict[str, Any]) -> dict[str, int]:
    """Tokens that a text can have: the rest only fills the embeddings up."""
    import gguf

    tokens = values["tokenizer.ggml.tokens"]
    kinds = values.get("tokenizer.ggml.token_type") or [gguf.TokenType.NORMAL] * len(tokens)
    return {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != gguf.TokenType.UNUSED
    }


def _add_special(backend: "Tokenizer", values: dict[str, Any]) -> None:
    """Tokens that are looked for before a text is split, in the order of their ids."""
    import gguf
    from tokenizers import AddedToken

    apart = {gguf.TokenType.CONTROL: True, gguf.TokenType.UNKNOWN: True, gguf.TokenType.USER_DEFINED: False}
    kinds = values.get("tokenizer.ggml.token_type") or []
    found = [
        AddedToken(token, special=apart[kind], normalized=False)
        for token, kind in zip(values["tokenizer.ggml.tokens"], kinds, strict=bool(kinds))
        if kind in apart
    ]
    backend.add_special_tokens([token for token in found if token.special])
    backend.add_tokens([token for token in found if not token.special])


def _add_ends(backend: "Tokenizer", values: dict[str, Any], named: dict[str, str], begins: bool) -> None:
    """What stands before and after a text that is tokenised with its special tokens."""
    from tokenizers import processors

    first = (
        [named["bos_token"]]
        if values.get("tokenizer.ggml.add_bos_token", begins) and "bos_token" in named
        else []
    )
    last = (
        [named["eos_token"]]
        if values.get("tokenizer.ggml.add_eos_token", False) and "eos_token" in named
        else []
    )
    if first or last:
        backend.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, "$B:1", *(f"{token}:1" for token in last)],
            special_tokens=[(token, backend.token_to_id(token)) for token in {*first, *last}],
        )


def _template(values: dict[str, Any]) -> str | dict[str, str] | None:
    """The chat template, or all of them by name where there are several."""
    prefix = "tokenizer.chat_template"
    default = values.get(prefix)
    others = {
        key.removeprefix(f"{prefix}."): text for key, text in values.items() if key.startswith(f"{prefix}.")
    }
    return {"default": default, **others} if default and others else (default or others or None)
