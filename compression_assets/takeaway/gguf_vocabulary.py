"""A tokenizer written into a GGUF file as what it is: byte-level BPE ("gpt2") or SentencePiece's BPE ("llama").

`sources.gguf_tokenizer` reads what this writes. What neither can say is refused by name.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.sources.gguf_splitting import splitting_of
from compression_assets.sources.gguf_tokenizer import SPACE
from compression_assets.text.chat_template import DEFAULT

if TYPE_CHECKING:
    import gguf
    from transformers import PreTrainedTokenizerFast

FURTHER = "use --format hf"


def read_tokenizer_json(directory: Path) -> dict[str, Any]:
    """The tokenizer of a model directory. Raises StudyError unless it is a BPE with merges."""
    file = directory / "tokenizer.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if content.get("model", {}).get("type") != "BPE":
        raise StudyError(f"{directory} has no byte-pair tokenizer.json, which GGUF needs: {FURTHER}")
    if not content["model"]["merges"]:
        raise StudyError(f"the tokenizer of {directory} merges nothing, which GGUF cannot say: {FURTHER}")
    return content


def write_vocabulary(
    writer: "gguf.GGUFWriter",
    content: dict[str, Any],
    tokenizer: "PreTrainedTokenizerFast",
    size: int,
    directory: Path,
) -> None:
    """Add tokens by id (padded to `size`, the model's embeddings), rules, special tokens and chat template.

    content: of tokenizer.json; tokenizer: the same, loaded. Raises StudyError for rules that GGUF has no name for.
    """
    merges = [
        merge.split(" ", 1) if isinstance(merge, str) else merge for merge in content["model"]["merges"]
    ]
    by_id = {index: text for text, index in tokenizer.get_vocab().items()}
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(size)]
    kinds = _kinds(content, tokenizer, by_id, size)
    if _is_sentencepiece(content):
        writer.add_tokenizer_model("llama")
        writer.add_add_space_prefix(_prefix(content, directory))
        writer.add_token_scores(_scores(tokens, merges))
    else:
        splitting = splitting_of(content)
        if splitting is None or _changes_text(content):
            raise StudyError(
                f"the tokenizer of {directory} splits text by rules that llama.cpp has no name for here: {FURTHER}"
            )
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splitting.names[0])
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    _add_special_tokens(writer, tokenizer)
    _add_templates(writer, tokenizer)


def _is_sentencepiece(content: dict[str, Any]) -> bool:
    """Such a tokenizer writes spaces as U+2581 and what it does not know as bytes; nothing in it is byte-level."""
    rules = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")], ensure_ascii=False)
    return bool(content["model"].get("byte_fallback")) and SPACE in rules and "ByteLevel" not in rules


def _prefix(content: dict[str, Any], directory: Path) -> bool:
    """Whether a space goes before a text. Raises StudyError for other rules than SentencePiece's.

    A Metaspace that puts one leaves it out where a text begins with a space; llama.cpp always puts it.
    """
    normalizer = _flat(content.get("normalizer"), "normalizers")
    splitter = _flat(content.get("pre_tokenizer"), "pretokenizers")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    never = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False}
    if (normalizer, splitter) == ([{"type": "Prepend", "prepend": SPACE}, replace], []):
        return True
    if (normalizer, splitter) in (([replace], []), ([], [never])):
        return False
    raise StudyError(f"the tokenizer of {directory} puts spaces in ways that GGUF cannot say: {FURTHER}")


def _flat(rule: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if rule is None:
        return []
    return rule[key] if rule["type"] == "Sequence" else [rule]


def _changes_text(content: dict[str, Any]) -> bool:
    """Whether a byte-level tokenizer rewrites text beyond NFC, which llama.cpp leaves out."""
    return any(rule["type"] != "NFC" for rule in _flat(content.get("normalizer"), "normalizers"))


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """SentencePiece merges the pair whose token scores best: the order of the merges, as a score of what they make."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _kinds(
    content: dict[str, Any], tokenizer: "PreTrainedTokenizerFast", by_id: dict[int, str], size: int
) -> list[int]:
    import gguf

    special = {token["id"]: token["special"] for token in content["added_tokens"]}
    kind = gguf.TokenType
    found = []
    for index in range(size):
        text = by_id.get(index)
        if text is None:
            found.append(kind.UNUSED)
        elif index == tokenizer.unk_token_id and _is_sentencepiece(content):
            found.append(kind.UNKNOWN)
        elif index in special:
            found.append(kind.CONTROL if special[index] else kind.USER_DEFINED)
        elif (
            content["model"].get("byte_fallback")
            and len(text) == 6
            and text.startswith("<0x")
            and text[-1] == ">"
        ):
            found.append(kind.BYTE)
        else:
            found.append(kind.NORMAL)
    return found


def _add_special_tokens(writer: "gguf.GGUFWriter", tokenizer: "PreTrainedTokenizerFast") -> None:
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if name == "bos" and index is None:
            # Readers insist on one; add_bos_token below keeps it out of every text.
            index = tokenizer.eos_token_id
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    whole = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(whole[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(whole[-1] == tokenizer.eos_token_id)


def _add_templates(writer: "gguf.GGUFWriter", tokenizer: "PreTrainedTokenizerFast") -> None:
    """The default one and those with a name, in an order of their own: the writer's is another in every process."""
    templates = tokenizer.chat_template or {}
    if isinstance(templates, str):
        templates = {DEFAULT: templates}
    for name in sorted(templates):
        key = "tokenizer.chat_template" if name == DEFAULT else f"tokenizer.chat_template.{name}"
        writer.add_string(key, templates[name])
    if named := sorted(set(templates) - {DEFAULT}):
        writer.add_array("tokenizer.chat_templates", named)
