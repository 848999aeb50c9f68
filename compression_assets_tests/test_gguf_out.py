"""A GGUF file is what its model directory is: read back, and in llama.cpp itself where it is installed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines import llama_cpp
from compression_assets.sources.gguf_splitting import LLAMA3, QWEN2, SPLITTINGS, Splitting, splitting_of
from compression_assets.sources.models import GgufModel, fetch_model
from compression_assets.takeaway import gguf_vocabulary
from compression_assets.takeaway.gguf_check import check_in_llama_cpp, check_tokens, sample_texts
from compression_assets.takeaway.gguf_file import write_gguf
from compression_assets.text.samples import TEXTS
from compression_assets_tests.gguf_helpers import byte_level_tokenizer, put_tokenizer, sentencepiece_tokenizer
from compression_assets_tests.tiny_models import tiny_model

needs_llama_cpp = pytest.mark.skipif(
    not llama_cpp.available(), reason="xllamacpp is not installed: pip install --group test"
)

QWEN = next(splitting for splitting in SPLITTINGS if splitting.regex == QWEN2)
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def directory_of(
    folder: Path, tokenizer: PreTrainedTokenizerFast, architecture: str = "llama", rope: str = "default"
) -> Path:
    """A model whose attention is sharp, so that positions matter, with this tokenizer."""
    settings: dict[str, Any] = {
        "vocab_size": 720,
        "max_position_embeddings": 256,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": rope, "rope_theta": 10_000.0, **ROPES[rope]},
    }
    if architecture == "qwen3":
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
        torch.manual_seed(0)
        config = Qwen3Config(
            **settings, **shape, num_attention_heads=4, num_key_value_heads=2, use_cache=True
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = tiny_model(architecture, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj.weight" in name or "embed" in name:
                parameter.mul_(6.0 * 0.1 / parameter.std())
    model.to(torch.bfloat16).save_pretrained(folder)
    put_tokenizer(folder, tokenizer)
    return folder


def read_back(directory: Path, folder: Path) -> Path:
    write_gguf(directory, folder / "model.gguf", "tiny", "a test")
    fetch_model(GgufModel(kind="gguf", path=str(folder / "model.gguf")), folder / "back", folder)
    return folder / "back"


def logits(directory: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0].float()
    return found


def same_tokens(directory: Path, other: Path) -> None:
    texts = sample_texts(directory)
    tokenizer = AutoTokenizer.from_pretrained(other)
    found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    check_tokens(directory, found, texts, "the file loaded back")
    one = AutoTokenizer.from_pretrained(directory)
    assert one("x")["input_ids"] == tokenizer("x")["input_ids"]
    assert one.chat_template == tokenizer.chat_template


def test_named_chat_templates_come_back_under_their_names(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(SPLITTINGS[0])
    tokenizer.chat_template = {"default": "{{ messages }}", "tool-use": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    same_tokens(directory_of(tmp_path / "model", tokenizer), read_back(tmp_path / "model", tmp_path))


@pytest.mark.parametrize("splitting", SPLITTINGS, ids=lambda splitting: str(splitting.names[0]))
def test_byte_level_tokenizers_keep_their_rules(tmp_path: Path, splitting: Splitting) -> None:
    same_tokens(
        directory_of(tmp_path / "model", byte_level_tokenizer(splitting)),
        read_back(tmp_path / "model", tmp_path),
    )


@pytest.mark.parametrize("prefix", ["prepend", "none", "never"])
def test_sentencepiece_is_written_as_such(tmp_path: Path, prefix: str) -> None:
    directory = directory_of(tmp_path / "model", sentencepiece_tokenizer(prefix=prefix))
    same_tokens(directory, read_back(directory, tmp_path))


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_positions_come_back(tmp_path: Path, rope: str) -> None:
    directory = directory_of(tmp_path / "model", byte_level_tokenizer(QWEN), rope=rope)
    back = read_back(directory, tmp_path)
    ids = list(range(200))
    assert torch.allclose(logits(directory, ids), logits(back, ids), atol=1e-4)
    if rope != "default":
        plain = directory_of(tmp_path / "plain", byte_level_tokenizer(QWEN))
        assert (logits(plain, ids) - logits(back, ids)).abs().max() > 0.1


@needs_llama_cpp
@pytest.mark.parametrize("name", [name for splitting in SPLITTINGS for name in splitting.names])
def test_llama_cpp_splits_by_the_rules_of_each_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    splitting = next(splitting for splitting in SPLITTINGS if name in splitting.names)
    directory = directory_of(tmp_path / "model", byte_level_tokenizer(splitting))
    monkeypatch.setattr(gguf_vocabulary, "splitting_of", lambda _: replace(splitting, names=(name,)))
    write_gguf(directory, tmp_path / "model.gguf", "tiny", "a test")
    texts = sample_texts(directory)
    tokens, _ = llama_cpp.ask(tmp_path / "model.gguf", texts, [1, 2, 3])
    check_tokens(directory, tokens, texts, "llama.cpp")


@needs_llama_cpp
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("rope", ROPES)
def test_llama_cpp_predicts_the_same(tmp_path: Path, architecture: str, rope: str) -> None:
    directory = directory_of(tmp_path / "model", byte_level_tokenizer(QWEN), architecture, rope)
    if rope == "llama3" and architecture != "llama":
        with pytest.raises(StudyError, match=f"'llama3' are not written to GGUF for {architecture}"):
            write_gguf(directory, tmp_path / "model.gguf", "tiny", "a test")
        return
    write_gguf(directory, tmp_path / "model.gguf", "tiny", "a test")
    said = check_in_llama_cpp(directory, tmp_path / "model.gguf", list(range(200)))
    assert "into the same tokens and predicts the same" in said


@needs_llama_cpp
def test_llama_cpp_notices_what_differs(tmp_path: Path) -> None:
    directory = directory_of(tmp_path / "model", byte_level_tokenizer(QWEN), "llama", "linear")
    write_gguf(directory, tmp_path / "model.gguf", "tiny", "a test")
    plain = directory_of(tmp_path / "plain", byte_level_tokenizer(QWEN))
    with pytest.raises(StudyError, match="predicts otherwise"):
        check_in_llama_cpp(plain, tmp_path / "model.gguf", list(range(200)))
    put_tokenizer(directory, byte_level_tokenizer(SPLITTINGS[0]))
    with pytest.raises(StudyError, match=r"llama\.cpp tokenises '.*otherwise"):
        check_in_llama_cpp(directory, tmp_path / "model.gguf", list(range(200)))
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:3000])
    with pytest.raises(StudyError, match=r"llama\.cpp cannot use .*cut\.gguf"):
        check_in_llama_cpp(directory, tmp_path / "cut.gguf", [1, 2, 3])


@pytest.mark.parametrize("prefix", ["first", "always"])
def test_spaces_that_gguf_cannot_put_are_refused(tmp_path: Path, prefix: str) -> None:
    directory = directory_of(tmp_path / "model", sentencepiece_tokenizer(prefix=prefix))
    with pytest.raises(StudyError, match="puts spaces in ways that GGUF cannot say"):
        write_gguf(directory, tmp_path / "x.gguf", "x", "x")


def test_rules_without_a_name_are_refused(tmp_path: Path) -> None:
    directory = directory_of(
        tmp_path / "model", byte_level_tokenizer(Splitting(("x",), r"\p{L}+|\p{N}{1,2}|."))
    )
    with pytest.raises(StudyError, match="no name for"):
        write_gguf(directory, tmp_path / "x.gguf", "x", "x")


def test_rules_are_recognised_in_the_spellings_of_the_hub() -> None:
    """tokenizer.json of SmolLM2, Llama 3 and Qwen2.5, as far as it says how text is split."""
    whole = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bytes_only = whole | {"use_regex": False}

    def split(pattern: str) -> dict[str, Any]:
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    def name(ignore_merges: bool, *steps: dict[str, Any]) -> str:
        found = splitting_of(
            {
                "model": {"ignore_merges": ignore_merges},
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)},
            }
        )
        return found.names[0] if found else "none"

    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    assert llama3 == LLAMA3
    assert name(True, split(llama3), bytes_only) == "llama-bpe"
    assert name(False, split(llama3.replace("{1,3}", "")), bytes_only) == "qwen2"
    assert name(False, {"type": "Digits", "individual_digits": True}, whole) == "smollm"
    assert name(False, whole) == "gpt-2"
    assert name(False, {"type": "Digits", "individual_digits": False}, whole) == "none"
    assert name(False, whole | {"add_prefix_space": True}) == "none"


def test_the_texts_tell_the_rules_apart() -> None:
    """A check with texts on which two rules agree would see no difference between them."""
    pieces = {}
    for splitting in SPLITTINGS:
        if splitting.whole_words or splitting.regex != LLAMA3:
            pieces[splitting.names[0]] = json.dumps(
                [splitting.pre_tokenizer().pre_tokenize_str(text) for text in TEXTS]
            )
    assert len(set(pieces.values())) == len(pieces)
