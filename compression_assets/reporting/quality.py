"""Sections about why an order breaks and how far judged quality can be trusted."""

from compression_assets.reporting.parts import Cell, Exhibit, Quote, Section, Table, head, number
from compression_assets.reporting.read import ReportData, Row


def why_it_breaks(data: ReportData) -> Section:
    """What step_diagnostics says about every step."""
    title = "Why it breaks"
    rows = data.tables["step_diagnostics"]
    if not rows:
        return Section("why", title, missing="No step diagnostics in this study.")
    return Section("why", title, tables=[generic_table(rows, "Diagnostics of every step.", "diagnostics")])


def calibration(data: ReportData) -> Section:
    """How each judge did on planted answers."""
    title = "Can the judge be trusted?"
    rows = data.tables["judge_calibration"]
    if not rows:
        return Section("judge", title, missing="No judge has taken its calibration in this study.")
    caption = "Each judge on planted answers whose order is known."
    return Section("judge", title, tables=[generic_table(rows, caption, "calibration")])


def comparisons(data: ReportData) -> Section:
    """Paired differences between models."""
    title = "Which differences are real"
    rows = data.tables["comparisons"]
    if not rows:
        return Section("comparisons", title, missing="No paired comparisons in this study.")
    return Section(
        "comparisons",
        title,
        tables=[generic_table(rows, "Paired differences over the same items.", "comparisons")],
    )


def sample_answers(data: ReportData) -> Section:
    """The same questions answered by every model."""
    title = "Sample answers, side by side"
    if not data.answers:
        return Section("answers", title, missing="No questions were asked in this study.")
    questions: dict[str, Row] = {row["id"]: row for rows in data.answers.values() for row in rows}
    exhibits = [
        Exhibit(
            question=row["question"],
            context=row["context"],
            expected=" / ".join(dict.fromkeys(row["expected"])),
            quotes=[
                Quote(data.name(model), answer["answer"])
                for model, answers in data.answers.items()
                for answer in answers
                if answer["id"] == name
            ],
        )
        for name, row in questions.items()
    ]
    intro = (
        f"The first {len(exhibits)} questions, not chosen for their answers. "
        "What models wrote is shown as it is, as plain text."
    )
    return Section("answers", title, intro=intro, exhibits=exhibits)


def generic_table(rows: list[Row], caption: str, key: str) -> Table:
    """All columns and rows of a table of the database."""
    columns = list(rows[0])
    cells = [
        [
            number(float(value), f"{key}.{place}.{name}")
            if _is_number(value)
            else Cell("–" if value is None else str(value))
            for name, value in row.items()
        ]
        for place, row in enumerate(rows)
    ]
    cells = [[head(row[0].text), *row[1:]] for row in cells]
    return Table(f"{caption} n = {len(rows):,} rows.", columns, cells, key=key)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
