"""Whose a storage is: one study file's, whatever else has the same name."""

from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.study.places import CLAIM, current_study, study_root
from compression_assets_tests.project import Project


def test_a_storage_belongs_to_one_study_file_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    first, second = map(Project, folders)
    monkeypatch.setenv("COMPRESSION_STORAGE", str(tmp_path / "storage"))

    def opened(project: Project) -> Path:
        monkeypatch.setenv("COMPRESSION_STUDY", str(project.study_file))
        return study_root(current_study())

    root = opened(first)
    assert not root.exists(), "looking at a study makes no storage"
    root.mkdir(parents=True)
    assert opened(first) == root and (root / CLAIM).exists()

    first.write(first.read() | {"seed": 3})
    assert opened(first) == root, "the file itself may change"
    with pytest.raises(
        StudyError, match=f"belongs to the study file {first.study_file}.*write another 'name'"
    ):
        opened(second)
    second.write(first.read())
    assert opened(second) == root, "a copy of the file may stand elsewhere"
    second.write(second.read() | {"name": "other"})
    assert opened(second) != root

    (root / CLAIM).unlink()
    assert opened(first) == root
