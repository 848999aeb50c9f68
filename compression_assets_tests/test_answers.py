"""Answers on disk."""

from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.evaluation.answers import Answer, read_answers, write_answers


def answer(**changed: object) -> Answer:
    fields = {
        "id": "mill-1",
        "question": "What was ground?",
        "context": "The mill ground rye.",
        "expected": ("rye", "the rye"),
        "prompt": "…",
        "answer": "",
        "n_tokens": 0,
        "finished": True,
    }
    return Answer(**{**fields, **changed})  # type: ignore[arg-type]


def test_answers_come_back_from_disk(tmp_path: Path) -> None:
    answers = [answer(), answer(id="ü", answer="rye\nü", n_tokens=7, finished=False)]
    path = write_answers(answers, tmp_path / "made")
    assert read_answers(tmp_path / "made") == answers
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StudyError, match="are damaged"):
        read_answers(tmp_path / "made")
    with pytest.raises(StudyError, match="there are no answers at"):
        read_answers(tmp_path)
