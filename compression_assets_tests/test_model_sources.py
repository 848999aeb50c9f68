"""Model sources: what is written, and what is refused with which words.

The hub source needs a network and is not run here; only its settings are tested.
"""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression_assets.errors import StudyError
from compression_assets.sources.models import ModelSource, check_model_source, fetch_model
from compression_assets.sources.random_model import SPECIAL_TOKENS, byte_tokenizer
from compression_assets.store.fingerprints import file_sha256
from compression_assets.text.chat import Message, render
from compression_assets_tests.made_wheels import put_wheel

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def model_source(**fields: Any) -> Any:
    return TypeAdapter(ModelSource).validate_python(fields)


def fetch(output: Path, **fields: Any) -> dict[str, Any]:
    return fetch_model(model_source(**fields), output, output.parent / "cache")


def logits(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as somebody else would have made it: fp32, tied (Qwen2) or untied (Llama)."""
    path = tmp_path_factory.mktemp("original") / request.param
    source = model_source(
        kind="random",
        architecture=request.param,
        tie_word_embeddings=request.param == "qwen2",
        vocab_size=272,
        **TINY,
    )
    fetch_model(source, path, path, dtype="float32")
    return path


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def edit_json(path: Path, **changes: Any) -> None:
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))


# random models


def test_random_models_depend_on_their_seed_alone(tmp_path: Path) -> None:
    shas = [fetch(tmp_path / str(n), kind="random", seed=seed)["sha256"] for n, seed in enumerate([0, 0, 1])]
    assert shas[0] == shas[1] != shas[2]


def test_random_models_are_not_degenerate(original: Path) -> None:
    spread = logits(original).log_softmax(-1).std(-1)
    assert spread.min() > 0.3
    assert len(logits(original).argmax(-1).unique()) > 5


def test_the_byte_tokenizer_comes_back_from_disk(original: Path) -> None:
    made, loaded = byte_tokenizer(), AutoTokenizer.from_pretrained(original)
    for text in ("Hello  there 12", "é🎉\n\n x", "e\u0301<|im_end|>"):
        assert loaded(text)["input_ids"] == made(text)["input_ids"]
        assert loaded.decode(made(text)["input_ids"]) == unicodedata.normalize("NFC", text)
    assert (loaded.eos_token, loaded.pad_token, len(loaded)) == (made.eos_token, made.pad_token, len(made))


def test_random_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of"):
        model_source(kind="random", hidden_size=60, num_attention_heads=4)
    with pytest.raises(ValidationError, match="greater than or equal to 259"):
        model_source(kind="random", vocab_size=100)


# directories


@pytest.mark.parametrize("shard_size", ["1TB", "20KB"])
def test_directory_becomes_bf16_with_the_same_weights(
    original: Path, tmp_path: Path, shard_size: str
) -> None:
    given = tmp_path / "given"
    AutoModelForCausalLM.from_pretrained(original).save_pretrained(given, max_shard_size=shard_size)
    AutoTokenizer.from_pretrained(original).save_pretrained(given)
    (given / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    facts = fetch(tmp_path / "out", kind="directory", path=str(given))
    before, after = (
        load_file(original / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert ("lm_head.weight" in after) == ("llama" in original.name)
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["vocab_size"]) == ("bfloat16", 272)
    assert (facts["kind"], facts["license"], facts["notes"]) == ("directory", "mit", [])
    json.dumps(facts, allow_nan=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "<|im_end|>"
    assert (
        json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
        == tokenizer.eos_token_id
    )
    assert render(tokenizer, [Message("user", "hi"), Message("assistant", "ho")], 99)[1].count(True) == 4


def test_missing_pad_and_template_and_wrong_eos_are_set_and_noted(
    original: Path, copy: Path, tmp_path: Path
) -> None:
    edit_json(copy / "tokenizer_config.json", pad_token=..., eos_token="<|im_start|>")
    (copy / "chat_template.jinja").unlink()
    notes = " ".join(fetch(tmp_path / "out", kind="directory", path=str(copy))["notes"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template
    assert all(word in notes for word in ("end token set", "no chat template"))
    # transformers itself gives a Qwen2 tokenizer the pad token <|endoftext|>.
    assert (
        ("pad token set to the end token" in notes)
        == (tokenizer.pad_token == "<|im_end|>")
        == ("llama" in str(original))
    )


def test_sampling_settings_without_do_sample_are_mended(copy: Path, tmp_path: Path) -> None:
    edit_json(copy / "generation_config.json", temperature=0.6)
    assert "do_sample" in fetch(tmp_path / "out", kind="directory", path=str(copy))["notes"][0]


def remove_config(path: Path) -> None:
    (path / "config.json").unlink()


def break_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def leave_only_pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def remove_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def cut_weights(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def plant_nan(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def drop_tensor(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def remove_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


def name_missing_shard(path: Path) -> None:
    (path / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def name_outside_shard(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../secret.safetensors"}})
    )


def set_config(**changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_json(path / "config.json", **changes)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, "does not exist"),
        (remove_config, "config.json does not exist"),
        (break_config, "not valid JSON"),
        (set_config(auto_map={"AutoModel": "x.Y"}), "auto_map"),
        (set_config(quantization_config={"quant_method": "bitsandbytes"}), "already quantized"),
        (set_config(model_type="unheard_of"), "cannot be loaded"),
        (set_config(hidden_size="wide"), "cannot be loaded"),
        (set_config(intermediate_size=50), "cannot be loaded"),
        (leave_only_pickle, "pickled"),
        (remove_weights, r"no \*.safetensors"),
        (cut_weights, "corrupted"),
        (plant_nan, "NaN or infinite values in model.norm.weight"),
        (drop_tensor, "lacks weights .model.norm.weight."),
        (remove_tokenizer, "no tokenizer"),
        (name_missing_shard, "missing"),
        (name_outside_shard, "outside"),
    ],
)
def test_unusable_directories_are_refused_in_one_sentence(
    copy: Path, tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(copy)
    with pytest.raises(StudyError, match=says) as caught:
        fetch(tmp_path / "out", kind="directory", path=str(copy))
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_early_check_needs_no_model_to_be_loaded(copy: Path) -> None:
    source = model_source(kind="directory", path=str(copy))
    check_model_source(source)
    cut_weights(copy)
    with pytest.raises(StudyError, match="corrupted"):
        check_model_source(source)


def test_a_tokenizer_of_another_model_is_refused(copy: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"extra{n}" for n in range(20)])
    tokenizer.save_pretrained(copy)
    with pytest.raises(StudyError, match="ids up to 278, but the model only 272"):
        fetch(tmp_path / "out", kind="directory", path=str(copy))


# GGUF


def write_gguf(path: Path, model_dir: Path, quantized: bool) -> None:
    """A GGUF file as llama.cpp's converter makes it: its tensor names, and Llama's q and k in its order."""
    config = json.loads((model_dir / "config.json").read_text())
    architecture, heads, key_heads = (
        config["model_type"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    )
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(512)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_string("general.license", "cc0-1.0")
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + list(SPECIAL_TOKENS)
    tokens += ["ab", "abc"]
    tokens += [f"[PAD{n}]" for n in range(config["vocab_size"] - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if architecture == "llama" else "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in tokens])
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_unk_token_id(256)
    writer.add_chat_template(byte_tokenizer().chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    for name, tensor in load_file(model_dir / "model.safetensors").items():
        array = tensor.float().numpy()
        count = {"q_proj": heads, "k_proj": key_heads}.get(name.split(".")[-2])
        if architecture == "llama" and count:
            array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        kind = (
            gguf.GGMLQuantizationType.Q8_0
            if quantized and array.ndim == 2 and array.shape[1] % 32 == 0
            else None
        )
        data = gguf.quantize(array, kind) if kind is not None else np.ascontiguousarray(array)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("quantized", [False, True])
def test_gguf_becomes_an_ordinary_directory(original: Path, tmp_path: Path, quantized: bool) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, original, quantized)
    # Lies beside the file and must not be read instead of the file's own metadata.
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    facts = fetch(tmp_path / "out", kind="gguf", path=str(path))
    assert (facts["license"], facts["sha256"]) == ("cc0-1.0", file_sha256(path))
    expected, found = (
        load_file(original / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        error = (found[name].float() - tensor).norm() / tensor.norm()
        assert error < (0.02 if quantized else 0.003)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|im_end|>"
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_truncated_gguf_is_refused(original: Path, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.gguf"
    write_gguf(path, original, quantized=True)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 or keep == 0 else keep * len(data))])
    with pytest.raises(StudyError, match=r"cut\.gguf"):
        fetch(tmp_path / "out", kind="gguf", path=str(path))


# wheels


def test_a_model_directory_in_a_wheel(original: Path, tmp_path: Path) -> None:
    files = {f"demo/model/{file.name}": file.read_bytes() for file in original.iterdir()}
    pin = put_wheel(tmp_path / "cache", files)
    fields = pin.model_dump() | {"file": "demo/model", "kind": "wheel", "license": "MIT"}
    facts = fetch(tmp_path / "out", **fields)
    assert (facts["license"], facts["origin"]) == ("MIT", "demo==1.0 demo/model")
    assert file_sha256(original / "model.safetensors") == facts["sha256"]


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "hub", "repo": "Qwen/Qwen2.5-0.5B-Instruct"},
        {"kind": "hub", "repo": "a/b/c", "revision": "main"},
        {"kind": "directory", "path": "x", "trust_remote_code": True},
        {"kind": "wheel", "package": "-r", "version": "1", "sha256": "0" * 64, "file": "f", "license": "MIT"},
        {"kind": "wheel", "package": "p", "version": "1", "sha256": "beef", "file": "f", "license": "MIT"},
    ],
)
def test_model_sources_are_strict(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model_source(**fields)
