"""The command sweep-survival on a copy of a finished study: every cell once, its rows in the database, its refusals."""

import shutil
from pathlib import Path

import pytest

from compression_assets_tests.project import Project

pytestmark = pytest.mark.timeout(400)


def test_the_survival_sweep_runs_a_cell_once(finished_study: Project, tmp_path: Path) -> None:
    project = Project(tmp_path)
    shutil.copytree(finished_study.root, project.root)
    command = ("sweep-survival", "--lrs", "1e-3", "--tokens", "100", "--starts", "q_d,base")
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

    code, output = project.compression(*command)
    assert code == 0, output
    assert [file.stat().st_mtime_ns for file in results] == before
    assert "no verdict from 1 of 3 seeds" in output
    code, output = project.compression(*command[:-1], "q_x")
    assert code == 1 and "no model 'q_x' to start from" in output
