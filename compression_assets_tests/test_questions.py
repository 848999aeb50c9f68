"""Questions: what is read and what is refused with which words, the seeded draw, and the set on disk.

The hub source needs a network: here `datasets` is replaced by rows that look like the hub's.
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from pydantic import TypeAdapter, ValidationError

from compression_assets.errors import StudyError
from compression_assets.sources.questions import (
    QuestionSettings,
    QuestionSource,
    check_question_source,
    read_questions,
)
from compression_assets.text.questions import Question, read_question_set, select_questions, write_questions

GOOD: dict[str, Any] = {
    "id": "mill-1",
    "title": "The old mill",
    "context": " The mill by the river ground rye until 1911, when a flood took its wheel. ",
    "question": "  What did the mill grind?",
    "answers": {"text": ["rye", " rye "], "answer_start": [34, 34]},
}
READ = Question(
    id="mill-1",
    title="The old mill",
    context="The mill by the river ground rye until 1911, when a flood took its wheel.",
    question="What did the mill grind?",
    answers=("rye", "rye"),
)


def question_source(**fields: Any) -> Any:
    return TypeAdapter(QuestionSource).validate_python(fields)


def write_lines(path: Path, *rows: Any) -> Any:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return question_source(kind="jsonl", path=str(path))


def test_rows_of_squads_schema_are_read_and_stripped(tmp_path: Path) -> None:
    other = GOOD | {"id": "mill-2", "title": "", "answers": {"text": ["rye – 1911"]}}
    source = write_lines(tmp_path / "a.jsonl", GOOD, "", other)
    check_question_source(source)
    assert read_questions(source, tmp_path) == [
        READ,
        replace(READ, id="mill-2", title="", answers=("rye – 1911",)),
    ]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        (json.dumps(GOOD | {"title": float("nan")}), "not valid JSON"),
        ("[1]", "expected an object"),
        *[(without(name), f'"{name}"') for name in GOOD],
        *[(GOOD | {name: 3}, f'"{name}"') for name in GOOD],
        *[(GOOD | {name: " \n"}, f'"{name}" is empty') for name in ("id", "context", "question")],
        (GOOD | {"context": "\ud800"}, "surrogate"),
        (GOOD | {"answers": {"text": "rye"}}, "a list"),
        (GOOD | {"answers": {"text": [], "answer_start": []}}, "no answer"),
        (GOOD | {"answers": {"text": ["rye", " "]}}, "an answer is empty"),
        (GOOD | {"answers": {"text": ["rye", None]}}, "an answer is None, not a text"),
        (GOOD | {"answers": {"text": ["rye"], "answer_start": [1, 2]}}, "as many integers"),
        (GOOD | {"answers": {"text": ["rye"], "answer_start": [True]}}, "as many integers"),
        (GOOD | {"answers": {"text": ["rye"], "answer_start": 34}}, "as many integers"),
        (GOOD, r"the id 'mill-1' is also that of .*questions.jsonl, line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, says: str) -> None:
    source = write_lines(tmp_path / "questions.jsonl", GOOD, line)
    with pytest.raises(StudyError, match=f"questions.jsonl, line 2: .*{says}") as caught:
        read_questions(source, tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_empty_or_no_utf8_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"the question file .*none.jsonl does not exist"):
        check_question_source(question_source(kind="jsonl", path=str(tmp_path / "none.jsonl")))
    with pytest.raises(StudyError, match=r"the question file .*data.none.jsonl does not exist"):
        read_questions(question_source(kind="jsonl", path="package:none.jsonl"), tmp_path)
    with pytest.raises(StudyError, match=r"empty.jsonl is empty"):
        read_questions(write_lines(tmp_path / "empty.jsonl", ""), tmp_path)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(GOOD | {"title": "é"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(StudyError, match=r"latin.jsonl, line 1: not UTF-8"):
        read_questions(question_source(kind="jsonl", path=str(latin)), tmp_path)


HUB = {"kind": "hub", "dataset": "someone/squad", "revision": "abc", "split": "validation"}


def test_the_hub_is_read_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(name: str, **options: Any) -> datasets.Dataset:
        asked.update(options, name=name)
        return datasets.Dataset.from_list([GOOD, GOOD | {"id": "mill-2"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_questions(question_source(**HUB), tmp_path) == [READ, replace(READ, id="mill-2")]
    assert (asked["name"], asked["revision"], asked["split"]) == ("someone/squad", "abc", "validation")


def test_a_hub_data_set_that_does_not_load_or_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, **options: Any) -> datasets.Dataset:
        raise ConnectionError("offline\nfor now")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(StudyError, match=r"someone/squad \(validation, revision abc\).*\(offline\)"):
        read_questions(question_source(**HUB), tmp_path)
    rows = datasets.Dataset.from_list([GOOD, GOOD | {"id": "mill-2", "context": None}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: rows)
    with pytest.raises(StudyError, match=r'someone/squad, row 1: "context" is None'):
        read_questions(question_source(**HUB), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"source": HUB},
        {"source": HUB, "count": 0},
        {"source": {"kind": "hub", "dataset": "someone/squad", "split": "validation"}, "count": 1},
        {"source": {"kind": "jsonl", "path": ""}, "count": 1},
        {"source": {"kind": "csv", "path": "x"}, "count": 1},
    ],
)
def test_settings_are_strict(settings: dict[str, Any]) -> None:
    assert QuestionSettings.model_validate({"source": HUB, "count": 1}).count == 1
    with pytest.raises(ValidationError):
        QuestionSettings.model_validate(settings)


def many(count: int) -> list[Question]:
    return [
        replace(READ, id=str(number), question=f"What was ground in {1800 + number}?")
        for number in range(count)
    ]


def test_the_draw_depends_on_content_and_seed_alone() -> None:
    questions = many(60)
    drawn = select_questions(questions, 20, seed=1)
    renamed = [replace(question, id=f"new {question.id}") for question in questions]
    random.Random(0).shuffle(renamed)
    assert [question.question for question in select_questions(renamed, 20, seed=1)] == [
        question.question for question in drawn
    ]
    assert select_questions(questions, 30, seed=1)[:20] == drawn
    assert set(select_questions(questions, 20, seed=2)) != set(drawn)
    assert set(select_questions(questions, 60, seed=2)) == set(questions)


def test_a_question_that_stands_twice_is_drawn_once() -> None:
    questions = [*many(3), replace(many(1)[0], id="again")]
    assert select_questions(questions, 3, seed=0) == select_questions(questions[::-1], 3, seed=0)
    with pytest.raises(StudyError, match="4 questions asked, but the source has 3 different ones"):
        select_questions(questions, 4, seed=0)


def test_a_set_comes_back_from_disk(tmp_path: Path) -> None:
    questions = [READ, replace(READ, id="ü", title="", answers=("rye", "a flood"))]
    path = write_questions(questions, tmp_path / "set")
    assert path.name == "questions.parquet"
    assert read_question_set(tmp_path / "set") == questions
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StudyError, match=r"questions.parquet are damaged"):
        read_question_set(tmp_path / "set")
    with pytest.raises(StudyError, match="there are no questions at"):
        read_question_set(tmp_path)
