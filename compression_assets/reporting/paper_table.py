"""Table 1 of the paper (arXiv 2511.19495), to set a leaderboard beside."""

import csv
from importlib import resources
from typing import Any


def read_paper_table() -> list[dict[str, Any]]:
    """Its ten rows; `size_mib` is what the paper calls MB (its figures are MiB)."""
    text = (resources.files("compression_assets") / "data" / "paper_table_1.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    wanted = ("model", "g_eval", "prompt_alignment", "clarity", "size_mib", "perplexity")
    rows = []
    for raw in csv.DictReader(lines):
        raw["size_mib"] = raw["size_mb"]
        rows.append({name: raw[name] if name == "model" else float(raw[name]) for name in wanted})
    return rows
