"""Writes a study's answer and ranked orders, with their date, device and limits, between the markers of Markdown files.

Usage: python scripts/fill_readme.py [--study STUDY] [FILE …]   (default: the demo, into README.md and docs/results.md)
"""

import argparse
import re
import sys
from pathlib import Path

from compression_assets.reporting.answer import answer_of
from compression_assets.reporting.database import up_to_date
from compression_assets.reporting.headline import cautions, ranked
from compression_assets.reporting.page import measured_on
from compression_assets.reporting.parts import Table
from compression_assets.reporting.read import ReportData, read_report_data
from compression_assets.reporting.serving import not_faster, served_table
from compression_assets.study.files import load_study
from compression_assets.study.places import study_root
from compression_assets.tables import markdown, shown

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "README.md", ROOT / "docs" / "results.md")
MARKED = r"(<!-- {0} -->\n).*?(<!-- /{0} -->)"
BETWEEN = re.compile(MARKED.format("leaderboard"), re.DOTALL)
ANSWERS = re.compile(MARKED.format("answers"), re.DOTALL)
"""Where a file has it: whether models still answer and end their answers."""


def text(data: ReportData) -> str:
    """The answer, the ranked table, what it rests on, what engines make of models, and what none of it can say."""
    found = answer_of(data)
    date = max(manifest.created_at for manifest in data.manifests.values())[:10]
    limits = "\n".join(f"- {sentence}" for sentence in cautions(data).points)
    parts = [
        f"Study `{data.study.name}`, measured {date} on {measured_on(data)}. {' '.join(found.sentences)}",
        _written(ranked(data, found)),
        *(["Models as engines serve them:", _written(served)] if (served := served_table(data)) else []),
        *not_faster(data),
        f"What these figures cannot say:\n\n{limits}",
    ]
    return "\n\n".join(parts) + "\n"


def answers(data: ReportData) -> str:
    """What perplexity does not see, of every model."""
    columns = ("end_of_turn", "answers_finished", "answers_empty", "f1", "repeated_4_grams")
    rows = [
        [data.name(model), *(shown(data.value(model, name)) for name in columns)] for model in data.models
    ]
    return markdown(("model", *(f"`{name}`" for name in columns)), rows) + "\n"


def _written(table: Table) -> str:
    rows = [[f"{cell.text} {cell.below}".strip() for cell in row] for row in table.written]
    return f"{markdown(table.full_columns, rows)}\n\n{table.caption}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="demo")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    study = load_study(arguments.study)
    root = study_root(study)
    database, _ = up_to_date(study, root)
    data = read_report_data(study, root, database)
    new = text(data)
    for file in arguments.files or FILES:
        before = file.read_text()
        if not BETWEEN.search(before):
            sys.exit(f"{file} has no <!-- leaderboard --> … <!-- /leaderboard --> to write between")
        after = BETWEEN.sub(lambda found: found[1] + new + found[2], before)
        file.write_text(ANSWERS.sub(lambda found: found[1] + answers(data) + found[2], after))


if __name__ == "__main__":
    main()
