"""Releases in float32 and float16 keep the digits that bfloat16 has not."""

from pathlib import Path

import pytest
import torch

from compression_assets.sources.models import DirectoryModel, fetch_model
from compression_assets.sources.random_model import byte_tokenizer
from compression_assets.weights.checkpoints import load_full_precision
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
