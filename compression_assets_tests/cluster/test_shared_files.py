"""Files that a study file names are read on hosts that lack them, and count there as they do where they lie."""

import shutil
from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.graph.assets.making import _contents
from compression_assets.sources import paths
from compression_assets.sources.chat import JsonlChat, check_chat_source
from compression_assets.sources.models import AssetModel, DirectoryModel, check_model_source
from compression_assets.study.shared_files import find_files, share_files
from compression_assets_tests.tiny_models import tiny_directory

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths.COPIES.clear()


def test_a_missing_source_is_read_from_the_store(cluster: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text('{"messages": []}\n')
    directory = tiny_directory(tmp_path / "model")
    sources = (JsonlChat(kind="jsonl", path=str(file)), DirectoryModel(kind="directory", path=str(directory)))
    there = _contents(sources)
    share_files(sources, tmp_path / "study")
    file.unlink()
    shutil.rmtree(directory)
    find_files(sources)
    assert _contents(sources) == there
    check_model_source(sources[1])
    assert sources[0].resolved() != file and sources[0].resolved().read_text() == '{"messages": []}\n'
    paths.COPIES.clear()


def test_what_another_asset_makes_is_shared_once_it_is_there(cluster: dict[str, str], tmp_path: Path) -> None:
    directory = tmp_path / "released"
    source = AssetModel(kind="asset", key="lab/released", path=str(directory))
    share_files([source], tmp_path / "study")
    find_files([source])
    with pytest.raises(StudyError, match="materialise the asset lab/released"):
        source.directory()
    for seed in (1, 2):
        tiny_directory(directory, seed=seed)
        there = _contents((source,))
        share_files([source], tmp_path / "study")
        shutil.rmtree(directory)
        find_files([source])
        assert _contents((source,)) == there and source.directory() != directory
        paths.COPIES.clear()


def test_what_has_changed_is_shared_again(cluster: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    source = JsonlChat(kind="jsonl", path=str(file))
    for text in ("one", "another"):
        file.write_text(text)
        share_files([source], tmp_path / "study")
        file.unlink()
        find_files([source])
        assert source.resolved().read_text() == text
        paths.COPIES.clear()


def test_what_nobody_has_shared_is_missed_as_on_one_machine(cluster: dict[str, str], tmp_path: Path) -> None:
    source = JsonlChat(kind="jsonl", path=str(tmp_path / "chat.jsonl"))
    find_files([source])
    with pytest.raises(StudyError, match=r"chat\.jsonl"):
        check_chat_source(source)
