"""The command sweep-survival on a copy of a finished study: every cell once, its rows in the database, its refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compression_assets_tests.project import Project

pytestmark = pytest.mark.timeout(400)

ROUNDINGS = "nearest,stochastic,nearest:kept,gptq,apart"


def test_the_survival_sweep_runs_a_cell_once(finished_study: Project, tmp_path: Path) -> None:
    project = Project(tmp_path)
    shutil.copytree(finished_study.root, project.root)
    command = (
        "sweep-survival",
        "--lrs",
        "1e-3",
        "--tokens",
        "100",
        "--roundings",
        ROUNDINGS,
        "--starts",
        "q_d,base",
    )
    code, output = project.compression(*command)
    assert code == 0, output
    results = sorted((project.root / "survival").glob("*/result.json"))
    assert [file.parent.name for file in results] == ["base-lr0.001-t100-s0", "q_d-lr0.001-t100-s0"]
    before = [file.stat().st_mtime_ns for file in results]
    assert not list((project.root / "survival").glob("*/trained"))
    ((surviving, predicted, perplexity),) = project.query(
        "SELECT surviving, predicted, perplexity FROM survival_sweep "
        "WHERE start = 'q_d' AND rounding = 'nearest:kept'"
    )
    assert surviving == pytest.approx(predicted, abs=0.05)
    assert perplexity > 1
    found = {
        rounding: (surviving, changed, beside)
        for rounding, surviving, changed, beside in project.query(
            "SELECT rounding, surviving, codes_changed, bytes_beside FROM survival_sweep WHERE start = 'q_d'"
        )
    }
    assert found.keys() == {"none (full precision)", *ROUNDINGS.split(",")}
    # A rank of 16 is what it keeps of an update of full rank, in two bytes a number beside codes that stay.
    surviving, changed, beside = found["apart"]
    assert 0.2 < surviving < 1 and changed == 0
    model = project.root / "models/q_d/config.json"
    assert beside == bytes_of_factors(json.loads(model.read_text()), rank=16)
    assert found["gptq"][1] > found["nearest"][1]

    code, output = project.compression(*command)
    assert code == 0, output
    assert [file.stat().st_mtime_ns for file in results] == before
    assert "no verdict from 1 of 3 seeds" in output
    code, output = project.compression(*command[:-1], "q_x")
    assert code == 1 and "no model 'q_x' to start from" in output
    code, output = project.compression(*command, "--recipe", "KD:x")
    assert code == 1 and "has no recipe for KD:x" in output
    code, output = project.compression(*command, "--recipe", "P")
    assert code == 1 and "trains with KD or a variant of it, not with P" in output


def bytes_of_factors(config: dict[str, Any], rank: int) -> int:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, values = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    a_layer = 2 * (hidden + queries) + 2 * (hidden + values) + 3 * (hidden + inner)
    return 2 * rank * a_layer * config["num_hidden_layers"]
