"""Which files of a hub repository are fetched, and what is refused before its weights are. No network."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects, hf_raise_for_status
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression_assets.errors import StudyError
from compression_assets.sources import hub_retries
from compression_assets.sources.models import HubModel, download, download_model, fetch_model
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


def answered(status: int) -> HfHubHTTPError:
    request = httpx.Request("GET", "https://hub.example/a/b")
    try:
        hf_raise_for_status(httpx.Response(status, request=request))
    except HfHubHTTPError as error:
        return error
    raise AssertionError(f"{status} is no error")


def not_cached(why: Exception) -> LocalEntryNotFoundError:
    """As snapshot_download says it when it could not ask the hub."""
    error = LocalEntryNotFoundError("no snapshot in the cache")
    error.__cause__ = why
    return error


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (answered(503), 4),
        (answered(429), 4),
        (answered(404), 1),
        (answered(401), 1),
        (httpx.ConnectError("no route"), 4),
        (httpx.ReadTimeout("slow"), 4),
        (not_cached(httpx.ConnectError("no route")), 4),
        (not_cached(answered(502)), 4),
        (not_cached(OfflineModeIsEnabled("HF_HUB_OFFLINE=1")), 1),
        (OSError("disk"), 1),
    ],
)
def test_what_may_pass_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, attempts: int
) -> None:
    monkeypatch.setattr(hub_retries, "FIRST_WAIT", 0.0)
    asked = []

    def unreachable(repo: str, **_: Any) -> str:
        asked.append(repo)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(StudyError, match="cannot be downloaded from the hub"):
        download(SOURCE, tmp_path, ["*.json"])
    assert len(asked) == attempts

    def recovers(repo: str, **_: Any) -> str:
        asked.append(repo)
        if len(asked) == attempts + 1:
            raise error
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", recovers)
    if attempts > 1:
        assert download(SOURCE, tmp_path, ["*.json"]) == tmp_path
        assert len(asked) == attempts + 2


def test_the_waits_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)

    def busy() -> None:
        raise answered(503)

    with pytest.raises(HfHubHTTPError):
        hub_retries.persistently(busy)
    assert len(waits) == hub_retries.ATTEMPTS - 1
    assert all(2**n <= wait <= 2**n + 1 for n, wait in enumerate(waits))
