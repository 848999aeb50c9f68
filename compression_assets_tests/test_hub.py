"""Which files of a hub repository are fetched, and what is refused before its weights are. No network."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression_assets.errors import StudyError
from compression_assets.sources.models import HubModel, download_model, fetch_model
from compression_assets_tests.tiny_models import tiny_directory

SOURCE = HubModel(kind="hub", repo="a/b", revision="main")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as it lies on the hub; downloads copy the files that the hub's own filter lets through."""
    repository, snapshot = tmp_path / "repository", tmp_path / "hub" / "0123abc"
    original = tiny_directory(tmp_path / "original")
    AutoModelForCausalLM.from_pretrained(original).save_pretrained(repository, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(original).save_pretrained(repository)
    for name in (
        "consolidated.safetensors",
        "original/params.json",
        "onnx/model.onnx",
        "model.gguf",
        "model.bin",
    ):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_bytes(b"another release")

    def names() -> list[str]:
        return [str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()]

    def snapshot_download(
        repo: str, *, revision: str, allow_patterns: Any, ignore_patterns: Any, **_: Any
    ) -> str:
        for name in filter_repo_objects(
            names(), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, revision: names())
    return repository


def test_only_what_is_needed_is_fetched_from_the_hub(hub: Path, tmp_path: Path) -> None:
    folder = download_model(SOURCE, tmp_path)
    fetched = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    shards = {file.name for file in hub.glob("model-*.safetensors")}
    assert len(shards) > 1
    assert {name for name in fetched if not name.endswith((".json", ".jinja"))} == shards
    assert not any("/" in name for name in fetched)
    fetch_model(SOURCE, tmp_path / "out", tmp_path)


def test_a_repository_without_safetensors_is_refused_by_what_it_has(hub: Path, tmp_path: Path) -> None:
    for file in hub.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(StudyError, match=r"a/b \(revision main\) has only pickled weights"):
        download_model(SOURCE, tmp_path)
    (hub / "model.bin").unlink()
    with pytest.raises(StudyError, match="has GGUF files only"):
        download_model(SOURCE, tmp_path)


def test_a_repository_that_is_refused_costs_no_download_of_weights(hub: Path, tmp_path: Path) -> None:
    config = json.loads((hub / "config.json").read_text()) | {"vision_config": {"hidden_size": 8}}
    (hub / "config.json").write_text(json.dumps(config))
    with pytest.raises(StudyError, match="multimodal"):
        download_model(SOURCE, tmp_path)
    assert not list(tmp_path.glob("hub/*/*.safetensors"))
