"""Section: the same questions answered by every model."""

from typing import Any

from compression_assets.reporting.parts import Exhibit, Quote, Section
from compression_assets.reporting.read import ReportData, Row


def sample_answers(data: ReportData) -> Section:
    """The same questions answered by every model."""
    title = "Sample answers, side by side"
    if not data.answers:
        return Section("answers", title, missing="No questions were asked in this study.")
    questions: dict[str, Row] = {row["id"]: row for rows in data.answers.values() for row in rows}
    exhibits = [_exhibit(data, name, row) for name, row in questions.items()]
    intro = (
        f"The first {len(exhibits)} questions, not chosen for their answers. "
        "What models wrote is shown as it is, as plain text."
    )
    return Section("answers", title, intro=intro, exhibits=exhibits)


def _exhibit(data: ReportData, question: str, row: Row) -> Exhibit:
    quotes = [
        Quote(data.name(model), answer["answer"])
        for model, answers in data.answers.items()
        for answer in answers
        if answer["id"] == question
    ]
    expected: Any = dict.fromkeys(row["expected"])
    return Exhibit(row["question"], row["context"], " / ".join(expected), quotes)
