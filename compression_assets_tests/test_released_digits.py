"""Releases in float32 and float16 keep the digits that bfloat16 has not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compression_assets.sources.gguf_splitting import SPLITTINGS
from compression_assets.sources.models import DirectoryModel, GgufModel, fetch_model
from compression_assets.sources.random_model import byte_tokenizer
from compression_assets.takeaway.gguf_file import write_gguf
from compression_assets.weights.checkpoints import load_full_precision
from compression_assets_tests.gguf_helpers import byte_level_tokenizer, put_tokenizer, rewritten
from compression_assets_tests.tiny_models import tiny_directory, tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_steps_start_from_the_digits_of_a_release(tmp_path: Path, dtype: torch.dtype) -> None:
    """Released weights come back bit for bit, where their bfloat16 is off by up to 2^-9; what is published stays."""
    release = tiny_model()
    release.to(dtype).save_pretrained(tmp_path / "release")
    byte_tokenizer().save_pretrained(tmp_path / "release")
    source = DirectoryModel(kind="directory", path=str(tmp_path / "release"))
    facts = fetch_model(source, tmp_path / "base", tmp_path, masters=True)
    fetch_model(source, tmp_path / "rounded", tmp_path)
    kept, rounded = (load_full_precision(tmp_path / name).state_dict() for name in ("base", "rounded"))
    worst = 0.0
    for name, weight in release.state_dict().items():
        assert torch.equal(kept[name], weight.float())
        worst = max(worst, ((rounded[name] - weight.float()) / weight.float()).abs().max().item())
    assert 2**-10 < worst <= 2**-8
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("base", "rounded")]
    assert files[0] == files[1]
    assert any("more digits" in note for note in facts["notes"])


def test_a_release_in_bfloat16_has_no_masters(tmp_path: Path) -> None:
    source = DirectoryModel(kind="directory", path=str(tiny_directory(tmp_path / "release")))
    facts = fetch_model(source, tmp_path / "base", tmp_path, masters=True)
    assert not (tmp_path / "base" / "masters").exists()
    assert not any("more digits" in note for note in facts["notes"])


@pytest.mark.parametrize(("file_type", "kept"), [(0, True), (32, False)], ids=["float32", "bfloat16"])
def test_a_gguf_file_in_float32_keeps_its_digits(tmp_path: Path, file_type: int, kept: bool) -> None:
    directory = tiny_directory(tmp_path / "model", vocab_size=720)
    put_tokenizer(directory, byte_level_tokenizer(SPLITTINGS[2]))
    write_gguf(directory, tmp_path / "model.gguf", "tiny", "a test")
    name = "model.layers.0.mlp.up_proj.weight"
    shape = load_full_precision(directory).state_dict()[name].shape
    fine = np.random.default_rng().normal(size=shape).astype(np.float32)
    file = rewritten(
        tmp_path / "model.gguf",
        tmp_path / "fine.gguf",
        {"general.file_type": file_type},
        tensors={"blk.0.ffn_up.weight": fine},
    )
    fetch_model(GgufModel(kind="gguf", path=str(file)), tmp_path / "base", tmp_path, masters=True)
    found = load_full_precision(tmp_path / "base").state_dict()[name]
    exact = torch.from_numpy(fine)
    assert torch.equal(found, exact if kept else exact.bfloat16().float())
