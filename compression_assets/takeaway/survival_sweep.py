"""The command `compression sweep-survival`: distil at several budgets, quantize in several ways, see what is left.

Each cell of the sweep (start, recipe, learning rate, tokens, seed) trains once and is measured with every rounding. A
finished cell is kept in storage/<study>/survival/ and found again while its inputs and the study's recipe for KD are
the same (delete it after a change of the code); an interrupted sweep goes on with the next one. One cell is in
`survival_cell`, verdicts on the results are in `survival_verdict`.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.graph.run import run_study
from compression_assets.reporting.database import refresh
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.store.tables import write_table
from compression_assets.strict import near_match
from compression_assets.study.model import Study
from compression_assets.study.names import DATASETS, TEACHER_LOGITS, model_key, relative_directory
from compression_assets.study.orderings import Node
from compression_assets.study.places import study_root
from compression_assets.takeaway.survival_cell import (
    DEFAULT_ROUNDINGS,
    GPTQ,
    PLAIN,
    RESULT,
    ROUNDINGS,
    Cell,
    CellRun,
)
from compression_assets.techniques.distillation.recipe import DistillationRecipe

TABLE = "survival_sweep"


def sweep(
    study: Study,
    starts: list[str],
    rates: list[float],
    tokens: list[int],
    seeds: list[int],
    roundings: list[str] | None = None,
    recipe: str = PLAIN,
) -> list[dict[str, Any]]:
    """Run every cell that is not there yet, printing a line each; the rows of all cells in this study's storage.

    They are in DuckDB table survival_sweep as well. roundings: names of ROUNDINGS; None: DEFAULT_ROUNDINGS. recipe: KD
    or a variant of it that the study has.

    Models and data that the sweep starts from are built if they are not there. Raises StudyError when the study has no
    such start or no distillation, or when building fails.
    """
    if min(rates) <= 0 or min(tokens) <= 0 or min(seeds) < 0:
        raise StudyError(
            "the sweep takes learning rates and tokens above 0 and seeds from 0 on; correct --lrs, --tokens"
        )
    roundings = list(DEFAULT_ROUNDINGS) if roundings is None else roundings
    for name in roundings:
        if name not in ROUNDINGS:
            raise StudyError(f"there is no rounding {name!r}: {near_match(name, ROUNDINGS)}")
    if GPTQ in roundings and study.data.splits.calibration is None:
        raise StudyError(
            f"rounding gptq looks at a calibration set, and study {study.name} has none; add data.splits.calibration"
        )
    if not isinstance(study.recipe(recipe), DistillationRecipe):
        raise StudyError(f"the sweep trains with KD or a variant of it, not with {recipe}; correct --recipe")
    root = study_root(study)
    cells = [Cell(*values, recipe) for values in product(starts, rates, tokens, seeds)]
    nodes = {cell.start: _node(study, cell.start) for cell in cells}
    _build_missing(study, [model_key(node) for node in nodes.values()], calibrated=GPTQ in roundings)
    for index, cell in enumerate(cells, start=1):
        rows = CellRun(study, root, cell, nodes[cell.start]).rows(roundings)
        print(f"[{index}/{len(cells)}] {cell.name}: {_summary(rows)}", flush=True)
    rows = stored_rows(root)
    table = [{name: value for name, value in row.items() if name != "nll"} for row in rows]
    write_table(root, TABLE, table)
    refresh(study, root)
    return rows


def _build_missing(study: Study, starts: list[str], calibrated: bool) -> None:
    """Run the part of the study that the sweep starts from, if any of it is not there yet."""
    store = ArtifactStore(study_root(study))
    needed = [*starts, DATASETS["evaluation"], DATASETS["distillation"], TEACHER_LOGITS]
    needed += [DATASETS["calibration"]] * calibrated
    missing = [
        asset for asset in needed if store.manifest(store.root / relative_directory(asset), asset) is None
    ]
    if missing and not run_study(" or ".join(f'+key:"{asset}"' for asset in missing)):
        raise StudyError(
            f"{', '.join(missing)} could not be built, which the sweep needs; the cause is said above"
        )


def stored_rows(root: Path) -> list[dict[str, Any]]:
    """Rows of all finished cells of a study's directory, one for each cell and rounding.

    nll: conversation -> [negative log-likelihood in nats, predicted tokens]; left out of the database.
    """
    return [
        {"recipe": PLAIN} | row
        for file in sorted((root / "survival").glob(f"*/{RESULT}"))
        for row in json.loads(file.read_text())["rows"]
    ]


def _summary(rows: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{row['rounding']} {row['perplexity']:.2f}"
        + (f" ({row['surviving']:.3f} survives)" if row["surviving"] is not None else "")
        for row in rows
    )


def _node(study: Study, start: str) -> Node:
    nodes = {node.key: node for node in study.nodes.values()}
    if start not in nodes:
        raise StudyError(
            f"study {study.name} has no model {start!r} to start from: {near_match(start, nodes)}"
        )
    if not study.distils:
        raise StudyError(
            f"study {study.name} has no ordering with KD, which the sweep trains with; add Q-KD to it"
        )
    return nodes[start]
