"""Tokenizers of each kind that GGUF knows, trained on the texts of the package. No test in here."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from compression_assets.sources.gguf_splitting import Splitting
from compression_assets.sources.gguf_tokenizer import SPACE, merges_by_score
from compression_assets.sources.random_model import CHAT_TEMPLATE
from compression_assets.study.files import PRESETS
from compression_assets.text.samples import TEXTS

SPECIAL = ("<|begin|>", "<|end|>")


def corpus() -> list[str]:
    lines = (PRESETS.parent / "data" / "smoke_chat.jsonl").read_text().splitlines()
    texts = [message["content"] for line in lines for message in json.loads(line)["messages"]]
    years = [f"In {year} they'd counted {year * 37} Sheep." for year in range(1900, 2000)]
    return [*texts, *years, *TEXTS]


def byte_level_tokenizer(splitting: Splitting, size: int = 700) -> PreTrainedTokenizerFast:
    """A BPE of bytes whose merges were learned on pieces of this splitting."""
    backend = Tokenizer(models.BPE(ignore_merges=splitting.whole_words))
    backend.pre_tokenizer = splitting.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=size - len(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return wrapped(backend)


def sentencepiece_tokenizer(size: int = 700, prefix: str = "prepend") -> PreTrainedTokenizerFast:
    """SentencePiece's BPE as Llama 2 has it. prefix: "prepend", "none", or a Metaspace's prepend_scheme."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    learner.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    learner.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=size - 300, show_progress=False))
    learned = learner.get_vocab()
    pieces = sorted(learned, key=lambda token: (len(token) == 1, learned[token]))
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [2, *[6] * 256, *[1] * len(pieces)]
    scores = [0.0] * 257 + [-float(rank) for rank in range(len(pieces))]
    backend = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges_by_score(tokens, scores, kinds),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(" ", SPACE)
    if prefix in ("prepend", "none"):
        first = [normalizers.Prepend(SPACE)] if prefix == "prepend" else []
        backend.normalizer = normalizers.Sequence([*first, replace])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=prefix, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prefix != "none" else []
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    backend.decoder = decoders.Sequence(steps)
    found = wrapped(backend, unk_token="<unk>")
    begin = found.convert_tokens_to_ids(SPECIAL[0])
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[SPECIAL[0], "$A"], pair=[SPECIAL[0], "$A", "$B:1"], special_tokens=[(SPECIAL[0], begin)]
    )
    return found


def wrapped(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        **special,
    )


def put_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """In the place of a model directory's own."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(directory)


def rewritten(
    source: Path,
    target: Path,
    keys: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """A copy of a GGUF file with some metadata set or left out and some tensors added or replaced."""
    reader = gguf.GGUFReader(source)
    fields = {
        name: (field.contents(), field.types)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name not in without
    }
    writer = gguf.GGUFWriter(target, fields.pop("general.architecture")[0])
    for name, (value, types) in fields.items():
        if name not in (keys or {}):
            writer.add_key_value(name, value, types[0], types[-1] if len(types) > 1 else None)
    for name, value in (keys or {}).items():
        if name == "general.alignment":
            writer.add_custom_alignment(value)
            continue
        kind = gguf.GGUFValueType.get_type(value)
        of = gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
        writer.add_key_value(name, value, kind, of)
    for tensor in reader.tensors:
        if tensor.name not in (tensors or {}):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
