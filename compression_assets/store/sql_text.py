"""Paths inside SQL that people copy, whatever signs they hold."""

import re
from pathlib import Path


def parquet_literal(path: Path | str) -> str:
    """A file or its URI as DuckDB's text literal; signs of patterns are in brackets, where they are themselves."""
    literal = re.sub(r"[*?\[]", r"[\g<0>]", str(path)).replace("'", "''")
    return f"'{literal}'"


def markdown_code(text: str) -> str:
    """`text` as code in a line of Markdown: between more backticks than it has in a row."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"
