"""What a GGUF file says is read, or refused by name: keys, tensors, rotary positions, rules of splitting."""

import contextlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from compression_assets.errors import StudyError
from compression_assets.planning.models import config_of
from compression_assets.sources.gguf_header import TensorInfo, read_floats, read_header
from compression_assets.sources.gguf_metadata import Metadata
from compression_assets.sources.gguf_rope import llama3_divisors, rope_parameters
from compression_assets.sources.gguf_splitting import SPLITTINGS
from compression_assets.sources.models import GgufModel, check_model_source, fetch_model
from compression_assets.takeaway.gguf_file import write_gguf
from compression_assets.text.samples import TEXTS
from compression_assets_tests.gguf_helpers import (
    byte_level_tokenizer,
    put_tokenizer,
    rewritten,
    sentencepiece_tokenizer,
)
from compression_assets_tests.tiny_models import tiny_directory


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    directory = tiny_directory(folder / "model", vocab_size=720)
    put_tokenizer(directory, byte_level_tokenizer(SPLITTINGS[2]))
    write_gguf(directory, folder / "good.gguf", "tiny", "a test")
    return folder / "good.gguf"


def check(file: Path) -> None:
    check_model_source(GgufModel(kind="gguf", path=str(file)))


def fetch(file: Path, folder: Path) -> Path:
    fetch_model(GgufModel(kind="gguf", path=str(file)), folder / "out", folder)
    return folder / "out"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"llama.logit_scale": 0.5}, "llama.logit_scale, which is not read"),
        ({"llama.attention.sliding_window": 4096}, "llama.attention.sliding_window"),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"llama.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ({"llama.expert_count": 8}, "llama.expert_count = 8"),
        ({"llama.attention.value_length": 32}, "value_length = 32"),
        ({"llama.feed_forward_length": [128, 96]}, "layer by layer"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count is 8 of heads 16 wide"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope' are not read"),
        ({"llama.rope.scaling.type": "yarn"}, "without rope.scaling.original_context_length"),
        ({"tokenizer.ggml.pre": "superbpe"}, "tokenizer.ggml.pre = 'superbpe'"),
        ({"tokenizer.ggml.pre": "default"}, "tokenizer.ggml.pre = 'default'"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model = 't5'"),
        ({"general.type": "adapter"}, "general.type = adapter"),
        ({"split.count": 2}, "split.count = 2"),
        ({"llama.attention.head_count": 0}, "does not state attention.head_count"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "720 tokens, but 2 of tokenizer.ggml.token_type"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    tmp_path: Path, good: Path, keys: dict[str, Any], says: str
) -> None:
    file = rewritten(good, tmp_path / "other.gguf", keys)
    with pytest.raises(StudyError, match=says) as caught:
        check(file)
    with pytest.raises(StudyError, match=says):
        fetch(file, tmp_path)
    assert "\n" not in str(caught.value) and "other.gguf" in str(caught.value)


def test_rules_that_a_file_does_not_name_are_not_guessed(tmp_path: Path, good: Path) -> None:
    for key, says in (
        ("tokenizer.ggml.pre", r"tokenizer\.ggml\.pre = None"),
        ("tokenizer.ggml.merges", r"does not state tokenizer\.ggml\.merges"),
    ):
        with pytest.raises(StudyError, match=says):
            check(rewritten(good, tmp_path / "old.gguf", without=(key,)))


def test_the_header_is_read_as_the_gguf_package_reads_it(tmp_path: Path, good: Path) -> None:
    random = np.random.default_rng()
    keys = {
        "general.alignment": int(random.choice([32, 64, 128])),
        "general.names": ["äöü", "", "x" * 300],
        "general.numbers": random.normal(size=9).tolist(),
        "general.signed": random.integers(-1000, 1000, size=5).tolist(),
        "general.flags": [True, False],
        "general.share": 0.25,
    }
    factors = random.normal(size=8).astype(np.float32)
    file = rewritten(good, tmp_path / "odd.gguf", keys, tensors={"rope_freqs.weight": factors})
    header, reader = read_header(file), gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert header.values == {name: value for name, value in fields.items() if not name.startswith("GGUF.")}
    assert header.tensors == {
        tensor.name: TensorInfo(
            tuple(map(int, tensor.shape)), int(tensor.tensor_type), int(tensor.data_offset)
        )
        for tensor in reader.tensors
    }
    assert read_floats(file, header.tensors["rope_freqs.weight"]) == tuple(factors.tolist())


@pytest.mark.parametrize("share", [0.0005, 0.05, 0.4, 0.9, 0.9999])
def test_a_file_that_is_cut_short_is_known_before_any_work(tmp_path: Path, good: Path, share: float) -> None:
    data = good.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(share * len(data))])
    check(good)
    with pytest.raises(StudyError, match=r"cut\.gguf is truncated or damaged \(it ends"):
        check(tmp_path / "cut.gguf")


def test_bytes_that_are_damaged_give_a_sentence_and_nothing_else(tmp_path: Path, good: Path) -> None:
    random, data = np.random.default_rng(14), good.read_bytes()
    refused = 0
    for number in range(60):
        broken = bytearray(data)
        for place in random.integers(4, 2000, size=3):
            broken[place] = random.integers(256)
        (tmp_path / f"{number}.gguf").write_bytes(broken)
        with contextlib.suppress(StudyError):
            check(tmp_path / f"{number}.gguf")
            continue
        refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"blk.0.attn_q_norm.weight": np.ones(16, dtype=np.float32)}, "blk.0.attn_q_norm.weight"),
        (
            {"rope_freqs.weight": np.array([1, 2, 1, 2, 1, 2, 1, 2], dtype=np.float32)},
            "not of Llama 3's kind",
        ),
        ({"rope_factors_long.weight": np.ones(8, dtype=np.float32)}, "rope_factors_long.weight"),
    ],
)
def test_unknown_tensors_are_refused_by_name(
    tmp_path: Path, good: Path, tensors: dict[str, np.ndarray], says: str
) -> None:
    file = rewritten(good, tmp_path / "other.gguf", tensors=tensors)
    with pytest.raises(StudyError, match=says):
        fetch(file, tmp_path)


def test_harmless_keys_and_further_ends_and_templates_are_taken(tmp_path: Path, good: Path) -> None:
    file = rewritten(
        good,
        tmp_path / "other.gguf",
        {
            "general.quantized_by": "somebody",
            "quantize.imatrix.entries_count": 12,
            "llama.rope.scaling.finetuned": True,
            "llama.expert_count": 0,
            "split.count": 1,
            "tokenizer.ggml.eot_token_id": 5,
            "tokenizer.chat_template.tool_use": "{{ messages }}",
        },
    )
    out = fetch(file, tmp_path)
    config = json.loads((out / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert config["eos_token_id"] == [tokenizer.eos_token_id, 5]
    assert tokenizer.chat_template["tool_use"] == "{{ messages }}" and "default" in tokenizer.chat_template


def test_a_plan_reads_the_same_config(tmp_path: Path, good: Path) -> None:
    file = rewritten(
        good, tmp_path / "x.gguf", {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    )
    planned = config_of(GgufModel(kind="gguf", path=str(file)), tmp_path)
    config = json.loads((fetch(file, tmp_path) / "config.json").read_text())
    assert planned["rope_parameters"] == config["rope_parameters"]
    assert planned["rope_parameters"]["rope_type"] == "linear"
    for name in ("vocab_size", "hidden_size", "num_key_value_heads", "tie_word_embeddings", "model_type"):
        assert planned[name] == config[name]


def test_sentencepiece_puts_its_first_token_and_space(tmp_path: Path, good: Path) -> None:
    directory = tiny_directory(tmp_path / "model", vocab_size=720)
    original = sentencepiece_tokenizer()
    put_tokenizer(directory, original)
    write_gguf(directory, tmp_path / "first.gguf", "tiny", "a test")
    # A file of Llama 2 says neither; llama.cpp then puts both.
    silent = (
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_space_prefix",
        "tokenizer.ggml.add_eos_token",
    )
    out = fetch(rewritten(tmp_path / "first.gguf", tmp_path / "x.gguf", without=silent), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(out)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.parametrize("seed", range(8))
def test_llama3_scaling_is_found_from_its_divisors(seed: int) -> None:
    """Against transformers' own frequencies, for settings drawn at random."""
    random = np.random.default_rng(seed)
    width = int(random.choice([64, 96, 128]))
    low = float(random.choice([1.0, 2.0]))
    rope = {
        "rope_type": "llama3",
        "rope_theta": float(random.choice([10_000.0, 500_000.0])),
        "factor": float(random.choice([2.0, 8.0, 32.0])),
        "low_freq_factor": low,
        "high_freq_factor": low * float(random.integers(2, 6)),
        "original_max_position_embeddings": int(random.choice([1024, 4096, 8192])),
    }
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2).double() / width)
    divisors = np.float32(plain / frequencies(rope, width))
    assert np.allclose(divisors, llama3_divisors(rope, width), rtol=1e-4)
    metadata = Metadata(
        {"general.architecture": "llama", "llama.rope.freq_base": rope["rope_theta"]},
        {},
        tuple(divisors.tolist()),
    )
    found = rope_parameters(metadata, width)
    assert torch.allclose(frequencies(found, width), frequencies(rope, width), rtol=1e-3)


def frequencies(rope: dict[str, Any], width: int) -> torch.Tensor:
    config = LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        head_dim=width,
        max_position_embeddings=131_072,
        rope_parameters=rope,
    )
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return found.double()
