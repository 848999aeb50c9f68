"""GGUF tensor types: int4 and int8_grouped are copied exactly, others rounded by the gguf package, NF4 not twice."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines import llama_cpp
from compression_assets.evaluation.perplexity import measure_perplexity
from compression_assets.planning.exported import gguf_bytes
from compression_assets.sources.gguf_splitting import QWEN2, SPLITTINGS
from compression_assets.sources.models import GgufModel, fetch_model
from compression_assets.takeaway import ggml
from compression_assets.takeaway.gguf_check import check_in_llama_cpp
from compression_assets.takeaway.gguf_export import loaded_back, write_for_serving
from compression_assets.takeaway.gguf_file import write_gguf
from compression_assets.takeaway.gguf_tensors import copied, rounded
from compression_assets.takeaway.importance import importance
from compression_assets.takeaway.modelfile import go_template, write_modelfile
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.weights import checkpoints
from compression_assets.weights.files import WEIGHTS
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.formats.gguf_mixture import Mixture
from compression_assets.weights.formats.gguf_types import (
    MIXTURES,
    TYPES,
    GgufForm,
    block_of,
    gguf_form,
    second_rounding,
)
from compression_assets.weights.formats.grouped_integer import Int4, Int8Grouped
from compression_assets.weights.formats.nf4 import NF4
from compression_assets_tests.gguf_helpers import byte_level_tokenizer, put_tokenizer
from compression_assets_tests.tiny_models import tiny_directory
from compression_assets_tests.training_helpers import tiny_dataset

needs_llama_cpp = pytest.mark.skipif(
    not llama_cpp.available(), reason="xllamacpp is not installed: pip install --group test"
)
COPIES = [("int4", 32, "q4_0"), ("int4", 64, "q4_0"), ("int8_grouped", 64, "q8_0")]


def model(folder: Path, architecture: str = "llama", **settings: object) -> Path:
    tokenizer = byte_level_tokenizer(next(one for one in SPLITTINGS if one.regex == QWEN2))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    tiny_directory(folder, architecture, vocab_size=720, pad_token_id=None, **ends, **settings)
    put_tokenizer(folder, tokenizer)
    return folder


def types(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("kind", TYPES)
def test_a_form_knows_its_blocks_without_the_gguf_package(kind: str) -> None:
    """Studies ask it when they are read, which must not import that package."""
    assert GgufForm(kind).row_multiple == block_of(MIXTURES.get(kind, kind))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize(("kind", "size", "target"), COPIES)
def test_integers_by_groups_are_copied(
    tmp_path: Path, architecture: str, kind: str, size: int, target: str
) -> None:
    recipe = QuantizationRecipe(kind=kind, group_size=size)  # type: ignore[arg-type]
    quantize_checkpoint(model(tmp_path / "model", architecture), tmp_path / "q", recipe)
    write_gguf(tmp_path / "q", tmp_path / "q.gguf", "tiny", "a test", GgufForm(target))
    fetch_model(GgufModel(kind="gguf", path=str(tmp_path / "q.gguf")), tmp_path / "back", tmp_path, "float32")
    back, dense = load_file(tmp_path / "back" / WEIGHTS), dict(checkpoints.dense_tensors(tmp_path / "q"))
    linear = [name for name in dense if name.endswith("_proj.weight")]
    assert len(linear) == 14 and all(torch.equal(back[name], dense[name]) for name in linear)
    found = types(tmp_path / "q.gguf")
    assert found["blk.1.attn_q.weight"] == found["blk.0.ffn_down.weight"] == target.upper()
    assert found["token_embd.weight"] == "Q8_0" and found["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("architecture", "quantized", "form"),
    [
        ("llama", None, GgufForm()),
        ("qwen2", None, GgufForm("q4_0")),
        ("qwen3", None, GgufForm("q8_0", embeddings="bf16")),
        ("llama", "int4", GgufForm("q4_0", embeddings="q8_0")),
        ("qwen2", "nf4", GgufForm("q8_0")),
        pytest.param("llama", None, GgufForm("q4_k_m"), marks=needs_llama_cpp),
        pytest.param("qwen2", None, GgufForm("iq4_nl"), marks=needs_llama_cpp),
    ],
)
def test_the_bytes_of_a_file_are_foreseen(
    tmp_path: Path, architecture: str, quantized: str | None, form: GgufForm
) -> None:
    directory = model(tmp_path / "model", architecture, tie_word_embeddings=form.embeddings is None)
    if quantized:
        quantize_checkpoint(directory, tmp_path / "q", QuantizationRecipe(kind=quantized))  # type: ignore[arg-type]
        directory = tmp_path / "q"
    write_gguf(directory, tmp_path / "made.gguf", "tiny", "a test", form)
    written = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(tmp_path / "made.gguf").tensors)
    assert gguf_bytes(json.loads((directory / "config.json").read_text()), form) == written


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
    write_gguf(directory, tmp_path / "m.gguf", "tiny", "a test", GgufForm(kind))
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
    for form, kind in ((NF4(), "q4_0"), (NF4(), "q4_k_m"), (Int4(), "q5_0"), (Int8Grouped(), "q4_0")):
        said = second_rounding("m", form, kind, "p_kd")
        assert f"in {kind} " in said and f"second time, to another grid; export p_kd as gguf:{kind}" in said
    for form, kind in (
        (NF4(), "q8_0"),
        (Int4(), "q4_0"),
        (Int4(), "bf16"),
        (BF16(), "q4_k_m"),
        (NF4(), "q6_k"),
    ):
        assert not second_rounding("m", form, kind, "p_kd")


@needs_llama_cpp
@pytest.mark.parametrize(("kind", "size", "target"), COPIES)
def test_llama_cpp_runs_what_was_copied(tmp_path: Path, kind: str, size: int, target: str) -> None:
    """Scales of any sign and the outermost codes included: its kernels compute with these blocks as they are."""
    recipe = QuantizationRecipe(kind=kind, group_size=size)  # type: ignore[arg-type]
    quantize_checkpoint(model(tmp_path / "model"), tmp_path / "q", recipe)
    write_gguf(tmp_path / "q", tmp_path / "q.gguf", "tiny", "a test", GgufForm(target))
    assert "predicts the same" in check_in_llama_cpp(tmp_path / "q", tmp_path / "q.gguf", list(range(200)))
    dataset = tiny_dataset(4, longest=900)
    found = llama_cpp.measure(tmp_path / "q.gguf", dataset)
    assert found.perplexity == pytest.approx(measure_perplexity(tmp_path / "q", dataset).perplexity, rel=0.01)
    one, eight = found.timed
    assert eight.work.batch == 8 and len(one.prompt) == len(one.generation) == one.work.runs
    assert all(speed > 0 for timed in found.timed for speed in timed.prompt_speeds + timed.generation_speeds)
    assert 2**20 < found.resident < 2**32 and found.ids == tuple(row.id for row in dataset.rows)


@needs_llama_cpp
@pytest.mark.parametrize(
    ("kind", "error"), [("Q4_K", 0.08), ("Q5_K", 0.04), ("Q6_K", 0.02), ("IQ4_NL", 0.085), ("Q5_1", 0.04)]
)
def test_ggml_rounds_with_the_error_of_its_type(kind: str, error: float) -> None:
    """The gguf package, which reads these types by code of its own, is the other side."""
    weight = np.random.default_rng(5).standard_normal((130, 512)).astype(np.float32)
    importance = np.geomspace(0.01, 100, 512).astype(np.float32)
    of = gguf.GGMLQuantizationType[kind]
    wrong, weighed = (dequantize(ggml.quantize(weight, of, by), of) - weight for by in (None, importance))
    assert error / 2 < np.linalg.norm(wrong) / np.linalg.norm(weight) < error
    assert (weighed**2 * importance).sum() < (wrong**2 * importance).sum()
    assert not np.array_equal(wrong, weighed)


@needs_llama_cpp
def test_ggml_and_the_gguf_package_round_alike() -> None:
    weight = np.random.default_rng(6).standard_normal((70, 96)).astype(np.float32)
    for kind in (
        gguf.GGMLQuantizationType.Q4_0,
        gguf.GGMLQuantizationType.Q5_0,
        gguf.GGMLQuantizationType.Q8_0,
    ):
        assert np.array_equal(ggml.quantize(weight, kind), gguf.quants.quantize(weight, kind))


def test_the_mixture_is_llama_cpps() -> None:
    """Of 16 layers: the first 2, the last 2, and every third of the 12 between them have more bits."""
    mixture = Mixture(GgufForm("q4_k_m"), layers=16, tied=False, grouped=3)
    more = [layer for layer in range(16) if mixture.type_of(f"blk.{layer}.ffn_down.weight", 256) == "q6_k"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert [
        layer for layer in range(16) if mixture.type_of(f"blk.{layer}.attn_v.weight", 512) == "q6_k"
    ] == more
    assert mixture.type_of("blk.0.attn_q.weight", 256) == mixture.type_of("token_embd.weight", 256) == "q4_k"
    assert mixture.type_of("output.weight", 256) == "q6_k"
    # Blocks of 256 do not divide these rows, nor those of 32 the last.
    assert mixture.type_of("blk.2.attn_q.weight", 576) == "q5_0"
    assert mixture.type_of("blk.0.ffn_down.weight", 1088) == mixture.type_of("output.weight", 576) == "q8_0"
    assert mixture.type_of("blk.2.attn_q.weight", 48) == "f16"
    tied = Mixture(GgufForm("q5_k_m"), layers=16, tied=True, grouped=3)
    assert (
        tied.type_of("token_embd.weight", 256) == "q6_k" and tied.type_of("blk.2.ffn_up.weight", 96) == "q5_1"
    )


def test_iq4_nl_spends_more_on_what_it_is_coarse_for() -> None:
    plain, weighed = (Mixture(GgufForm("iq4_nl", None, by), 16, True, 4) for by in (False, True))
    assert [one.type_of("blk.1.ffn_down.weight", 256) for one in (plain, weighed)] == ["q5_k", "iq4_nl"]
    assert plain.type_of("blk.9.attn_v.weight", 512) == "q5_k"
    assert plain.type_of("blk.9.attn_k.weight", 96) == plain.type_of("blk.2.ffn_down.weight", 96) == "iq4_nl"


def test_embeddings_are_a_choice_where_blocks_divide_them(tmp_path: Path) -> None:
    directory = model(tmp_path / "model", tie_word_embeddings=False)
    write_gguf(directory, tmp_path / "m.gguf", "tiny", "a test", GgufForm("q8_0", embeddings="q4_0"))
    found = types(tmp_path / "m.gguf")
    assert found["token_embd.weight"] == found["output.weight"] == "Q4_0"
    assert found["blk.0.attn_q.weight"] == "Q8_0"
    with pytest.raises(
        StudyError, match="embeddings of width 64 do not go into q6_k, whose blocks are 256: use"
    ):
        write_gguf(directory, tmp_path / "m.gguf", "tiny", "a test", GgufForm("q8_0", embeddings="q6_k"))


def test_forms_are_named_and_near_matches_told() -> None:
    assert gguf_form("gguf") == GgufForm("bf16")
    assert gguf_form("gguf:q4_k_m", "q8_0", True).name == "q4_k_m_embeddings_q8_0_imatrix"
    with pytest.raises(StudyError, match="unknown GGUF type 'q4_km': did you mean 'q4_k_m'"):
        gguf_form("gguf:q4_km")
    with pytest.raises(StudyError, match="bf16 rounds nothing"):
        gguf_form("gguf", importance=True)


def test_importance_is_the_mean_square_of_inputs(tmp_path: Path) -> None:
    """Against the same formula on the hidden states that transformers itself returns."""
    directory = model(tmp_path / "model")
    dataset = tiny_dataset(3)
    found = importance(directory, dataset)
    loaded = checkpoints.load_full_precision(directory).bfloat16()
    inputs = []
    for row in dataset:
        hidden = loaded.model.embed_tokens(torch.tensor([row.input_ids]))
        inputs.append(loaded.model.layers[0].input_layernorm(hidden)[0].detach().float())
    expected = torch.cat(inputs).square().mean(0)
    for name in ("q_proj", "k_proj", "v_proj"):
        assert torch.allclose(found[f"model.layers.0.self_attn.{name}.weight"], expected, rtol=0.01)
    assert len(found) == 14 and "lm_head.weight" not in found


@needs_llama_cpp
def test_llama_cpp_runs_a_mixture(tmp_path: Path) -> None:
    directory = model(tmp_path / "model", intermediate_size=256)
    form = GgufForm("q4_k_m", importance=True)
    write_for_serving(directory, tmp_path / "m.gguf", "tiny", "a test", form, tiny_dataset(3))
    assert types(tmp_path / "m.gguf")["blk.0.ffn_down.weight"] == "Q4_K"
    assert (tmp_path / "m.Modelfile").is_file()
    with loaded_back(directory, tmp_path / "m.gguf", tmp_path) as loaded:
        assert "predicts the same" in check_in_llama_cpp(loaded, tmp_path / "m.gguf", list(range(200)))


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
    # Llama 2's: the system message stands inside the first user's, and every user's begins a text anew.
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>' + messages[0].content + '<</SYS>>' %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{% for message in messages %}{% if message.role == 'user' %}[INST] {{ system if loop.first else '' }}"
        "{{ message.content }} [/INST]{% else %} {{ message.content }} ;{% endif %}{% endfor %}"
    )
    assert go_template(tokenizer) is None
    begun = (
        "{% for message in messages %}{{ bos_token }}{{ message.role }}: {{ message.content }};{% endfor %}"
    )
    tokenizer.chat_template = begun
    tokenizer.bos_token = "<|im_start|>"
    assert go_template(tokenizer) is None
    tokenizer.chat_template = begun.replace("{{ bos_token }}", "")
    assert "message" not in (go_template(tokenizer) or "message")
