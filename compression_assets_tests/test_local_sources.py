"""The content of local files counts in what is valid; what is pinned by a revision or hash needs no file."""

import shutil
from pathlib import Path

from compression_assets.graph.assets.making import _contents
from compression_assets.sources.chat import JsonlChat
from compression_assets.sources.models import DirectoryModel, GgufModel, RandomModel
from compression_assets_tests.tiny_models import tiny_directory


def test_a_changed_jsonl_is_noticed_and_a_moved_one_is_not_another(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text("one\n")
    before = _contents((JsonlChat(kind="jsonl", path=str(file)), None))
    assert list(before) == ["0/chat.jsonl"]
    file.write_text("two\n")
    assert _contents((JsonlChat(kind="jsonl", path=str(file)),)) != before
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(file, tmp_path / "elsewhere")
    assert _contents((JsonlChat(kind="jsonl", path=str(moved)),)) == _contents(
        (JsonlChat(kind="jsonl", path=str(file)),)
    )


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    files = [tmp_path / name / "data.jsonl" for name in ("train", "heldout")]
    for file in files:
        file.parent.mkdir()
        file.write_text("one\n")
    sources = tuple(JsonlChat(kind="jsonl", path=str(file)) for file in files)
    before = _contents(sources)
    files[0].write_text("two\n")
    assert _contents(sources) != before


def test_every_file_of_a_model_directory_counts(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "model")
    source = DirectoryModel(kind="directory", path=str(directory))
    before = _contents((source,))
    assert {"0/config.json", "0/model.safetensors"} <= set(before)
    (directory / "config.json").write_text((directory / "config.json").read_text() + " ")
    assert _contents((source,)) != before


def test_a_gguf_is_one_file_and_a_random_model_none(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert list(_contents((GgufModel(kind="gguf", path=str(file)),))) == ["0/model.gguf"]
    assert _contents((RandomModel(kind="random", architecture="qwen2"),)) == {}
