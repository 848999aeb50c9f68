"""`compression export --push`: the hub's own client against a hub on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from compression_assets.errors import StudyError
from compression_assets.sources import hub_retries
from compression_assets.takeaway.push import dry_run, push, refuse_push
from compression_assets_tests.hub_server import READ, WRITE, HubServer
from compression_assets_tests.tiny_models import tiny_directory

CARD = "---\nlicense: mit\n---\n# p_kd\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(hub_retries, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", WRITE)
    with HubServer() as serving:
        monkeypatch.setattr(constants, "ENDPOINT", serving.url)
        yield serving


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    directory = tiny_directory(tmp_path / "p_kd")
    (directory / "README.md").write_text(CARD)
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool.jinja").write_text("{{ 1 }}")
    return directory


def test_an_export_arrives_whole_in_a_private_repository(server: HubServer, exported: Path) -> None:
    refuse_push("me/small", update=False)
    assert push(exported, CARD, "me/small", update=False) == f"{server.url}/me/small"
    sent = {file.name: file.read_bytes() for file in exported.iterdir() if file.is_file()}
    assert server.repos["me/small"] == sent | {"additional_chat_templates/tool.jinja": b"{{ 1 }}"}
    assert server.private == {"me/small"}

    (exported / "README.md").write_text(CARD + "again")
    with pytest.raises(StudyError, match=r"me/small is there already: write another name, or --update"):
        refuse_push("me/small", update=False)
    with pytest.raises(StudyError, match=r"--push me/small: it is there already"):
        push(exported, CARD, "me/small", update=False)
    refuse_push("me/small", update=True)
    push(exported, CARD, "me/small", update=True)
    assert server.repos["me/small"]["README.md"].decode() == CARD + "again"


def test_a_gguf_file_goes_with_its_card_and_modelfile(server: HubServer, tmp_path: Path) -> None:
    file, modelfile = tmp_path / "p_kd.q4_0.gguf", tmp_path / "p_kd.q4_0.Modelfile"
    file.write_bytes(b"GGUF" + bytes(100))
    modelfile.write_text("FROM ./p_kd.q4_0.gguf")
    assert "p_kd.q4_0.gguf" in (said := dry_run(file, CARD, "me/gguf")) and "HF_TOKEN is set" in said
    assert server.requests == []
    push(file, CARD, "me/gguf", update=False)
    sent = {file.name: file.read_bytes(), modelfile.name: modelfile.read_bytes(), "README.md": CARD.encode()}
    assert server.repos["me/gguf"] == sent


@pytest.mark.parametrize(
    ("token", "repo", "sentence"),
    [
        (None, "me/small", "needs a token of the hub that may write, in the environment as HF_TOKEN"),
        ("hf_unknown", "me/small", "--push me/small: the hub does not know this HF_TOKEN"),
        (READ, "me/small", "HF_TOKEN may only read: make one that may write"),
        (WRITE, "small", "--push small: write it as owner/name"),
        (WRITE, "me/sm all", "--push me/sm all: "),
    ],
)
def test_what_can_be_known_is_refused_before_an_export(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None, repo: str, sentence: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(StudyError) as caught:
        refuse_push(repo, update=False)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert server.repos == {}


def test_only_a_repository_that_is_there_is_updated(server: HubServer) -> None:
    with pytest.raises(
        StudyError, match="me/new is not there, or HF_TOKEN may not see it: leave --update out"
    ):
        refuse_push("me/new", update=True)


def test_another_owners_name_and_a_hub_that_fails(server: HubServer, exported: Path) -> None:
    with pytest.raises(StudyError, match=r"--push they/small: this HF_TOKEN may not write there$"):
        push(exported, CARD, "they/small", update=False)
    server.refuse_commits = True
    with pytest.raises(
        StudyError, match=r"--push me/small: .*500.*p_kd is kept, and --push me/small --update"
    ):
        push(exported, CARD, "me/small", update=False)
    server.close()
    with pytest.raises(StudyError, match="--push me/small: the hub does not take it") as caught:
        refuse_push("me/small", update=False)
    assert "\n" not in str(caught.value)
