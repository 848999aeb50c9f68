"""A storage, a study and its sources in a folder whose name has every sign that some format gives a meaning to."""

from pathlib import Path

import duckdb
import pytest

from compression_assets.errors import StudyError
from compression_assets.sources.models import RandomModel, fetch_model
from compression_assets.store.sql_text import markdown_code, parquet_literal
from compression_assets.study.files import PRESETS, load_study
from compression_assets.study.places import dagster_home, refuse_foreign_home
from compression_assets_tests.project import Project

UGLY = """it's 100%25 [a]#1? "ü" é & $HOME `x`; {y} * ~"""


@pytest.mark.timeout(400)
def test_a_study_runs_and_is_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = tmp_path / UGLY
    folder.mkdir()
    source = RandomModel(kind="random", hidden_size=32, intermediate_size=64)
    fetch_model(source, folder / "model ?%", folder)
    (folder / "chats?.jsonl").write_text((PRESETS.parent / "data" / "smoke_chat.jsonl").read_text())
    project = Project(folder)
    study = project.read()
    study["data"]["chat"]["path"] = "chats?.jsonl"
    kept = {name: study[name] for name in ("name", "seed", "data", "techniques")}
    base = {"kind": "directory", "path": "model ?%"}
    project.write({**kept, "base_model": base, "orderings": ["Q"]})

    code, output = project.compression("run")
    assert code == 0, output
    code, output = project.compression(
        "query", "SELECT model FROM leaderboard WHERE perplexity > 1 ORDER BY model"
    )
    assert code == 0 and "base" in output and "q" in output
    code, output = project.compression("export", "q")
    assert code == 0 and (project.root / "exports" / "q" / "model.safetensors").is_file(), output
    # Everything is where the user asked for it, and nothing beside it under a name cut short.
    assert (project.root / "compression.duckdb").is_file()
    assert (project.root / "dagster_home" / "history" / "runs.db").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {UGLY, "caches"}


@pytest.mark.parametrize("name", ["it's", "[a]*?", "100%25 #é", "`back`"])
def test_sql_that_is_shown_can_be_copied(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    file = folder / "rows.parquet"
    with duckdb.connect() as db:
        db.execute("COPY (SELECT 42 AS answer) TO '" + str(tmp_path / "rows.parquet") + "' (FORMAT parquet)")
        (tmp_path / "rows.parquet").rename(file)
        assert db.execute(f"SELECT answer FROM {parquet_literal(file)}").fetchall() == [(42,)]


def test_code_in_markdown_may_hold_backticks() -> None:
    assert markdown_code("SELECT 1") == "`SELECT 1`"
    assert markdown_code("a `b` ``c``") == "``` a `b` ``c`` ```"


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_dagsters_home_is_linked_only_for_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    study = load_study("smoke")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("COMPRESSION_STORAGE", str(tmp_path / "it's 100% é #1"))
    assert dagster_home(study) == tmp_path / "it's 100% é #1" / "smoke" / "dagster_home"
    monkeypatch.setenv("COMPRESSION_STORAGE", str(tmp_path / name))
    link = dagster_home(study)
    assert link.is_symlink() and link.resolve() == tmp_path / name / "smoke" / "dagster_home"
    assert link == dagster_home(study) and not set("?%") & set(str(link))
    monkeypatch.setenv("DAGSTER_HOME", str(link))
    refuse_foreign_home(study)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StudyError, match="set COMPRESSION_STORAGE to a folder without them"):
        dagster_home(study)
