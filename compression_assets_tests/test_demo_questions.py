"""The reading-comprehension set that ships with the package."""

import importlib.resources
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.sources.questions import JsonlQuestions, check_question_source, read_questions

FILE = Path(str(importlib.resources.files("compression_assets"))) / "data" / "demo_questions.jsonl"
SOURCE = JsonlQuestions(kind="jsonl", path="package:demo_questions.jsonl")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def test_the_set_is_large_and_varied(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert len(read_questions(SOURCE, tmp_path)) == len(rows) >= 120
    per_passage = Counter(row["context"] for row in rows)
    assert len(per_passage) >= 60 and min(per_passage.values()) >= 2
    assert len({row["title"] for row in rows}) == len(per_passage)
    types = Counter(row["answer_type"] for row in rows)
    assert len(types) >= 8 and max(types.values()) < len(rows) / 3
    assert {"number", "date", "person", "place", "reason", "list", "yes/no"} <= set(types)


def test_every_passage_and_question_stands_once(rows: list[dict[str, Any]]) -> None:
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({(row["context"], row["question"]) for row in rows}) == len(rows)
    for context in {row["context"] for row in rows}:
        assert 60 <= len(context.split()) <= 120
    openings = {" ".join(row["context"].split()[:6]) for row in rows}
    assert len(openings) == len({row["context"] for row in rows})


def test_every_answer_is_a_span_of_its_passage(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        assert texts and len(set(texts)) == len(texts), row["id"]
        for text, start in zip(texts, starts, strict=True):
            assert row["context"][start : start + len(text)] == text, row["id"]
            assert text == text.strip() and text not in row["question"], row["id"]


def test_a_study_frozen_to_another_file_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "questions.jsonl"
    copy.write_bytes(FILE.read_bytes())
    frozen = JsonlQuestions(kind="jsonl", path=str(copy), sha256="0" * 64)
    with pytest.raises(StudyError, match=r"questions\.jsonl is not the one that the study is frozen to"):
        check_question_source(frozen)
    with pytest.raises(StudyError, match="frozen to"):
        read_questions(frozen, tmp_path)
