"""A study's data step with conversations that the model's template refuses, read from a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.sources.prepare import Preparation
from compression_assets.sources.settings import Data
from compression_assets.store.reports import StepReport, no_report
from compression_assets.text.datasets import TokenDataset
from compression_assets_tests.chat_templates import FAMILIES


def conversation(number: int, *first: dict[str, str]) -> dict[str, Any]:
    said = [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": f"yes {number}"},
    ]
    return {"messages": [*first, *said]}


def prepared(folder: Path, rows: list[dict[str, Any]], family: str = "Gemma", **changes: Any) -> StepReport:
    """The split "evaluation" of a file with these rows, written to `folder`/out."""
    folder.mkdir(exist_ok=True)
    FAMILIES[family].tokenizer().save_pretrained(folder / "model")
    file = folder / "chat.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "chat": {"kind": "jsonl", "path": str(file)},
        "max_length": 128,
        "splits": {"evaluation": {"conversations": 5}, "calibration": {"conversations": 3}},
    }
    data = Data.model_validate_json(json.dumps(settings | changes))
    return Preparation(data, 0, folder).write("evaluation", folder / "model", folder / "out", no_report)


SYSTEM = {"role": "system", "content": "obey"}
ROWS = [conversation(number) for number in range(38)]


def test_some_rows_are_left_out_counted_and_named(tmp_path: Path) -> None:
    rows = [
        *ROWS[:20],
        conversation(100, SYSTEM),
        *ROWS[20:],
        {"prompt_id": "first", **conversation(101, SYSTEM)},
    ]
    metadata = prepared(tmp_path, rows).metadata
    assert (metadata["refused"], metadata["source"]["refused"]) == (2, 2)
    assert [(one["id"], one["where"]) for one in metadata["refusals"]] == [
        ("21", f"{tmp_path / 'chat.jsonl'}, line 21"),
        ("first", f"{tmp_path / 'chat.jsonl'}, line 40"),
    ]
    assert "System role not supported" in metadata["refusals"][0]["reason"]
    assert "2 refused" in metadata["summary"]
    dataset = TokenDataset.load(tmp_path / "out")
    assert metadata["trained_tokens"] == dataset.n_trained == dataset.n_predicted + 2 * len(dataset)
    assert metadata["message_ends"] == 2 * len(dataset)


@pytest.mark.parametrize("place", [0, 19, 37])
def test_too_many_refused_rows_are_an_error_wherever_they_are(tmp_path: Path, place: int) -> None:
    rows = [*ROWS[:place], *[conversation(100 + n, SYSTEM) for n in range(3)], *ROWS[place:]]
    with pytest.raises(
        StudyError, match=rf"3 of 41 .* 5% of data.max_refused; .*chat.jsonl, line {place + 1}: "
    ):
        prepared(tmp_path, rows)
    assert prepared(tmp_path, rows, max_refused=0.1).metadata["refused"] == 3


def test_an_assistant_that_speaks_first_is_refused_by_mistral_alone(tmp_path: Path) -> None:
    rows = [*ROWS, conversation(50, {"role": "assistant", "content": "welcome"})]
    assert prepared(tmp_path / "m", rows, "Mistral").metadata["refusals"][0]["where"].endswith("line 39")
    assert prepared(tmp_path / "c", rows, "ChatML").metadata["refused"] == 0


def test_messages_about_a_row_are_short(tmp_path: Path) -> None:
    image = {"role": "user", "content": [{"type": "image", "url": "data:" + "A" * 3_000_000}]}
    with pytest.raises(StudyError, match=r"chat\.jsonl, line 39: a message's content is") as found:
        prepared(tmp_path, [*ROWS, conversation(1, image)])
    assert len(str(found.value)) < 500


def test_settings_of_the_template_reach_the_data_and_its_record(tmp_path: Path) -> None:
    report = prepared(tmp_path, ROWS, "ChatML", chat_template_kwargs={"enable_thinking": False})
    assert report.metadata["template"] == {
        "chat_template": None,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    with pytest.raises(StudyError, match="no chat template named 'tools'"):
        prepared(tmp_path, ROWS, "ChatML", chat_template="tools")
