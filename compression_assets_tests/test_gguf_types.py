"""GGUF tensor types: int4 and int8_grouped are copied exactly, others rounded by the gguf package, NF4 not twice."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file

from compression_assets.errors import StudyError
from compression_assets.evaluation.perplexity import measure_perplexity
from compression_assets.sources.gguf_splitting import QWEN2, SPLITTINGS
from compression_assets.sources.models import GgufModel, fetch_model
from compression_assets.takeaway import llama_cpp
from compression_assets.takeaway.gguf_check import check_in_llama_cpp
from compression_assets.takeaway.gguf_file import write_gguf
from compression_assets.takeaway.gguf_tensors import copied, refuse_second_rounding, rounded
from compression_assets.takeaway.modelfile import go_template, write_modelfile
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.weights import checkpoints
from compression_assets.weights.files import WEIGHTS
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.formats.grouped_integer import Int4, Int8Grouped
from compression_assets.weights.formats.nf4 import NF4
from compression_assets_tests.gguf_helpers import byte_level_tokenizer, put_tokenizer
from compression_assets_tests.tiny_models import tiny_directory
from compression_assets_tests.training_helpers import tiny_dataset

COPIES = [("int4", 32, "q4_0"), ("int4", 64, "q4_0"), ("int8_grouped", 64, "q8_0")]


def model(folder: Path, architecture: str = "llama", **settings: object) -> Path:
    tokenizer = byte_level_tokenizer(next(one for one in SPLITTINGS if one.regex == QWEN2))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    tiny_directory(folder, architecture, vocab_size=720, pad_token_id=None, **ends, **settings)
    put_tokenizer(folder, tokenizer)
    return folder


def types(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize(("kind", "size", "target"), COPIES)
def test_integers_by_groups_are_copied(
    tmp_path: Path, architecture: str, kind: str, size: int, target: str
) -> None:
    recipe = QuantizationRecipe(kind=kind, group_size=size)  # type: ignore[arg-type]
    quantize_checkpoint(model(tmp_path / "model", architecture), tmp_path / "q", recipe)
    write_gguf(tmp_path / "q", tmp_path / "q.gguf", "tiny", "a test", target)
    fetch_model(GgufModel(kind="gguf", path=str(tmp_path / "q.gguf")), tmp_path / "back", tmp_path, "float32")
    back, dense = load_file(tmp_path / "back" / WEIGHTS), dict(checkpoints.dense_tensors(tmp_path / "q"))
    linear = [name for name in dense if name.endswith("_proj.weight")]
    assert len(linear) == 14 and all(torch.equal(back[name], dense[name]) for name in linear)
    found = types(tmp_path / "q.gguf")
    assert found["blk.1.attn_q.weight"] == found["blk.0.ffn_down.weight"] == target.upper()
    assert found["token_embd.weight"] == "Q8_0" and found["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize("form", [Int4(group_size=128), Int8Grouped(group_size=32)])
def test_a_block_means_what_the_group_meant(form: Int4 | Int8Grouped) -> None:
    stored = form.quantize(torch.randn(3, 256, generator=torch.Generator().manual_seed(1)))
    kind = {4: "q4_0", 8: "q8_0"}[form.bits]
    raw = copied("w", form.codes(stored), form.scales(stored), kind)
    assert raw.shape == (3, 256 // 32 * {4: 18, 8: 34}[form.bits])
    means = dequantize(raw, gguf.GGMLQuantizationType[kind.upper()])
    assert np.array_equal(means, form.dequantize(stored).numpy())
    with pytest.raises(StudyError, match="w has scales that fp16"):
        copied("w", form.codes(stored), form.scales(stored) * 1e-7, kind)


@pytest.mark.parametrize(
    ("kind", "error"), [("bf16", 0.0), ("f16", 0.0), ("q8_0", 0.01), ("q5_0", 0.06), ("q4_0", 0.12)]
)
def test_full_precision_is_rounded_to_a_type(tmp_path: Path, kind: str, error: float) -> None:
    directory = model(tmp_path / "model", "qwen2", tie_word_embeddings=False)
    write_gguf(directory, tmp_path / "m.gguf", "tiny", "a test", kind)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    embeddings = {"q5_0": "Q8_0", "q4_0": "Q8_0"}.get(kind, kind.upper())
    assert tensors["output.weight"].tensor_type.name == embeddings
    tensor = tensors["blk.1.ffn_up.weight"]
    assert tensor.tensor_type.name == kind.upper()
    found = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).float()
    weight = load_file(directory / WEIGHTS)["model.layers.1.mlp.up_proj.weight"].float()
    assert error / 3 <= (found.reshape(weight.shape) - weight).norm() / weight.norm() <= error


def test_rows_that_blocks_do_not_divide_are_refused() -> None:
    with pytest.raises(
        StudyError, match=r"w has rows of 48 weights, no multiple of q4_0's 32: use gguf:bf16"
    ):
        rounded("w", torch.randn(2, 48), "q4_0")


def test_nothing_is_rounded_twice_to_few_bits() -> None:
    for form, kind in ((NF4(), "q4_0"), (NF4(), "q5_0"), (Int4(), "q5_0"), (Int8Grouped(), "q4_0")):
        with pytest.raises(
            StudyError, match=rf"in {kind} .* second time, to another grid; export p_kd as gguf:{kind}"
        ):
            refuse_second_rounding(Path("m"), form, kind, "p_kd")
    for form, kind in ((NF4(), "q8_0"), (Int4(), "q4_0"), (Int4(), "bf16"), (BF16(), "q4_0")):
        refuse_second_rounding(Path("m"), form, kind, "p_kd")


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed: pip install --group test")
@pytest.mark.parametrize(("kind", "size", "target"), COPIES)
def test_llama_cpp_runs_what_was_copied(tmp_path: Path, kind: str, size: int, target: str) -> None:
    """Scales of any sign and the outermost codes included: its kernels compute with these blocks as they are."""
    recipe = QuantizationRecipe(kind=kind, group_size=size)  # type: ignore[arg-type]
    quantize_checkpoint(model(tmp_path / "model"), tmp_path / "q", recipe)
    write_gguf(tmp_path / "q", tmp_path / "q.gguf", "tiny", "a test", target)
    assert "predicts the same" in check_in_llama_cpp(tmp_path / "q", tmp_path / "q.gguf", list(range(200)))
    dataset = tiny_dataset(4, longest=900)
    found = llama_cpp.measure(tmp_path / "q.gguf", dataset)
    assert found.perplexity == pytest.approx(measure_perplexity(tmp_path / "q", dataset).perplexity, rel=0.01)
    assert found.prompt_speed > found.generation_speed > 0 and 0 < found.first_token < 60
    assert 2**20 < found.resident < 2**32


def test_a_modelfile_says_the_chat_template(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = tiny_directory(tmp_path / "model")
    text = write_modelfile(directory, tmp_path / "m.gguf").read_text()
    turns = "".join(
        f'{{{{ {word} eq .Role "{role}" }}}}<|im_start|>{role}\n{{{{ .Content }}}}<|im_end|>\n'
        for word, role in (("if", "user"), ("else if", "assistant"), ("else if", "system"))
    )
    system = "<|im_start|>system\nYou are a small model made of random numbers.<|im_end|>\n"
    assert text == (
        "# ollama create m -f m.Modelfile\nFROM ./m.gguf\n"
        f'TEMPLATE """{{{{ if not .System }}}}{system}{{{{ end }}}}{{{{ range .Messages }}}}{turns}'
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
    )
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ loop.length }}{{ message['content'] }}{% endfor %}"
    )
    assert go_template(tokenizer) is None
