"""Model directories: what is written, what is read back, and what is refused."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config
from transformers.utils import logging

from compression_assets.errors import StudyError
from compression_assets.weights import checkpoints
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.formats.layout import everywhere
from compression_assets.weights.formats.nf4 import NF4
from compression_assets_tests.tiny_models import tiny_directory, tiny_model

INPUT = torch.arange(20).reshape(2, 10)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_directory(tmp_path / "base")


@pytest.fixture
def trained(base: Path, tmp_path: Path) -> Path:
    """A directory with masters that bf16 cannot hold."""
    checkpoints.save_full_precision(
        tiny_model(seed=1), tmp_path / "trained", tokenizer_from=base, masters=True
    )
    return tmp_path / "trained"


def rewrite(file: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = {**load_file(file), **change}
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None}, file, {"format": "pt"}
    )


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_keeps_fp32_in_masters_and_publishes_bf16(tmp_path: Path, tied: bool) -> None:
    base = tiny_directory(tmp_path / "base", tie_word_embeddings=tied)
    model = tiny_model(seed=1, tie_word_embeddings=tied)
    checkpoints.save_full_precision(model, tmp_path / "out", tokenizer_from=base, masters=True)

    loaded = checkpoints.load_full_precision(tmp_path / "out")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    published = load_file(tmp_path / "out" / "model.safetensors")
    assert ("lm_head.weight" in published) == (not tied)
    assert published.keys() == load_file(tmp_path / "out" / "masters" / "model.safetensors").keys()
    assert all(torch.equal(tensor, model.state_dict()[name].bfloat16()) for name, tensor in published.items())


def test_a_written_directory_is_an_ordinary_one(trained: Path, base: Path) -> None:
    model, loading = AutoModelForCausalLM.from_pretrained(trained, output_loading_info=True)
    assert not any(loading.values())
    assert model.dtype == torch.bfloat16
    assert torch.equal(
        model(INPUT).logits, checkpoints.load_for_scoring(trained, "cpu", torch.bfloat16)(INPUT).logits
    )
    assert AutoTokenizer.from_pretrained(trained).chat_template
    assert (trained / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()
    assert str(trained.parent) not in (trained / "config.json").read_text()
    assert {file.stat().st_mode & 0o777 for file in trained.rglob("*.safetensors")} == {0o644}


def test_scoring_takes_what_is_published_not_the_masters(trained: Path) -> None:
    scored = checkpoints.load_for_scoring(trained, "cpu", torch.float32)
    masters = checkpoints.load_full_precision(trained)
    assert scored.dtype == torch.float32
    assert not scored.training
    for name, tensor in masters.state_dict().items():
        assert torch.equal(scored.state_dict()[name], tensor.bfloat16().float())


def test_the_same_model_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        checkpoints.save_full_precision(
            tiny_model(seed=1), tmp_path / name, tokenizer_from=base, masters=True
        )
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        digests.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
    assert len(digests) == 1


def test_training_a_loaded_model_leaves_the_file_alone(trained: Path) -> None:
    file = trained / "masters" / "model.safetensors"
    before = file.read_bytes()
    with torch.no_grad():
        for parameter in checkpoints.load_full_precision(trained).parameters():
            parameter.add_(1.0)
    assert file.read_bytes() == before


def test_shards_are_read(tmp_path: Path) -> None:
    directory = tmp_path / "sharded"
    model = tiny_model().to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="50KB")
    assert len(checkpoints.weight_files(directory)) > 2
    loaded = checkpoints.load_full_precision(directory).state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in model.state_dict().items())

    checkpoints.weight_files(directory)[1].unlink()
    with pytest.raises(StudyError, match=r"model-00002\S* is named by the model's index but missing"):
        checkpoints.load_full_precision(directory)
    (directory / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(StudyError, match=r"index.json is damaged"):
        checkpoints.load_full_precision(directory)


def test_misfits_are_refused(trained: Path) -> None:
    masters = trained / "masters" / "model.safetensors"
    norm = load_file(masters)["model.norm.weight"]
    for change, sentence in (
        ({"model.norm.weight": None}, "lacks 1 of the model's tensors, first model.norm.weight"),
        ({"model.norm.weight": norm[:3].clone()}, r"is \[3\], but config.json asks for \[64\]"),
        ({"model.norm.weight": norm, "extra": norm.clone()}, "holds extra, unknown to its config.json"),
    ):
        rewrite(masters, change)
        with pytest.raises(StudyError, match=sentence):
            checkpoints.load_full_precision(trained)


def test_other_refusals(base: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no config\.json"):
        checkpoints.load_full_precision(tmp_path)
    weights = base / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:4], content[:100], content[: len(content) // 2]):
        weights.write_bytes(damaged)
        with pytest.raises(StudyError, match="is damaged"):
            checkpoints.load_full_precision(base)
    weights.rename(base / "pytorch_model.bin")
    with pytest.raises(StudyError, match="pickled"):
        checkpoints.load_full_precision(base)
    (base / "config.json").write_text("{")
    with pytest.raises(StudyError, match=r"config.json is damaged"):
        checkpoints.load_full_precision(base)
    (base / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(StudyError, match="cannot read"):
        checkpoints.read_config(base)
    (base / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    with pytest.raises(StudyError, match="not causal language models"):
        checkpoints.empty_model(checkpoints.read_config(base))
    with pytest.raises(StudyError, match="has no tokenizer"):
        checkpoints.copy_tokenizer(tmp_path, base)


@pytest.mark.parametrize(
    ("width", "quantized", "mib"),
    [(11008, False, 5885.96), (7706, False, 4492.93), (11008, True, 1959.21), (7706, True, 1599.90)],
)
def test_sizes_of_the_paper_follow_from_the_config(width: int, quantized: bool, mib: float) -> None:
    """Qwen2.5-3B; the paper's Table 1 has a file header more (5,886.01, 4,492.98, 1,959.44, 1,600.13)."""
    config = Qwen2Config(
        hidden_size=2048,
        intermediate_size=width,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    layout = everywhere(NF4() if quantized else BF16())
    assert round(checkpoints.predicted_tensor_bytes(config, layout) / 2**20, 2) == mib


def test_size_and_finiteness_are_checked_on_the_file(trained: Path) -> None:
    assert checkpoints.check_size(trained).passed
    assert checkpoints.check_finite(trained).passed
    rewrite(trained / "model.safetensors", {"model.norm.weight": torch.full((64,), torch.nan).bfloat16()})
    assert checkpoints.check_finite(trained).detail == "not finite: model.norm.weight"
    rewrite(trained / "model.safetensors", {"model.norm.weight": torch.ones(63).bfloat16()})
    assert not checkpoints.check_size(trained).passed


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_quiet_restores_progress_bars() -> None:
    shown = logging.is_progress_bar_enabled()
    try:
        for setting, switch in ((True, logging.enable_progress_bar), (False, logging.disable_progress_bar)):
            switch()
            with checkpoints.quiet():
                assert not logging.is_progress_bar_enabled()
            assert logging.is_progress_bar_enabled() == setting
    finally:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
