"""Techniques and a number format of another package go through every command without a change to this one."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from compression_assets.store.artifact_store import ArtifactStore
from compression_assets_tests.project import Project

SOURCE = Path(__file__).parent / "other_package"
ENTRY_POINTS = """
[compression_assets.techniques]
DP = two_techniques.depth:DepthPruning
N = two_techniques.packing:Packing

[compression_assets.formats]
nibbles = two_techniques.nibbles:Nibbles
"""
COMMANDS = """
import json, sys
from compression_assets.cli import main

for command in json.loads(sys.argv[1]):
    sys.argv[1:] = command
    print(f"=== {' '.join(command)}", flush=True)
    try:
        main()
    except SystemExit as end:
        print(f"ended with {end.code or 0}", flush=True)
"""
"""Several commands in one process: most of a command's time is its imports."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A study of four layers with the package's techniques, and nothing made yet."""
    folder = tmp_path_factory.mktemp("other")
    site = folder / "site"
    shutil.copytree(SOURCE, site, ignore=shutil.ignore_patterns("__pycache__"))
    about = site / "two_techniques-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: two-techniques\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    made = Project(folder)
    raw = made.read()
    raw["base_model"]["num_hidden_layers"] = 4
    raw["techniques"] |= {"DP": {"drop": 2}, "N": {}}
    raw["orderings"] = ["DP", "Q-DP-KD", "N-DP"]
    raw["evaluation"] = {
        "perplexity": {"batch_size": 8},
        "answers": {"max_new_tokens": 4},
        "diagnostics": {"tokens": 200},
    }
    made.write(raw)
    return made


def commands(project: Project, *lines: str) -> dict[str, str]:
    """Command -> its output."""
    path = f"{project.study_file.parent / 'site'}:{Path(__file__).parents[1]}"
    asked = json.dumps([line.split() for line in lines])
    _, output = project.command(sys.executable, "-c", COMMANDS, asked, PYTHONPATH=path)
    parts = [part.partition("\n") for part in output.split("=== ")[1:]]
    assert [line for line, _, _ in parts] == list(lines), output
    return {line: text for line, _, text in parts}


@pytest.mark.timeout(400)
def test_from_check_to_export(project: Project) -> None:
    lines = ("check", "plan", "doctor", "run", "leaderboard", "report", "export n_dp", "export dp")
    found = commands(project, *lines)
    assert all(text.rstrip().endswith("ended with 0") for text in found.values()), found

    assert "orderings base, DP, Q-DP-KD, N-DP;" in found["check"]
    sizes = {
        row[0]: row
        for line in found["plan"].splitlines()
        if (row := line.split()) and row[0].startswith(("base", "final", "model"))
    }
    store = ArtifactStore(project.root)
    for asset in ("final_dp", "model_n", "final_q_dp_kd", "final_n_dp"):
        directory = project.root / "models" / asset.partition("_")[2]
        manifest = store.manifest(directory, asset)
        assert manifest and not manifest.failed_checks
        # The plan said what the file weighs before there was one.
        assert float(sizes[asset][3]) == pytest.approx(manifest.weight_bytes / 2**20, abs=0.01)
    n = store.manifest(project.root / "models" / "n", "model_n")
    assert n and n.metadata["tensors_of_first"] > 40 and n.metadata["rows_read"] > 0
    n_dp = store.manifest(project.root / "models" / "n_dp", "final_n_dp")
    assert n_dp and "models/base" in n_dp.inputs and n_dp.path == ["N", "D", "DP", "N"]

    for model in ("DP", "Q-DP-KD", "N-DP"):
        assert model in found["leaderboard"].split()
    steps = project.query("SELECT ordering, technique, perplexity_after FROM step_diagnostics")
    assert {("DP", "DP"), ("N-DP", "N"), ("N-DP", "D")} <= {(text, technique) for text, technique, _ in steps}
    assert all(perplexity > 1 for _, _, perplexity in steps)
    page = Path(found["report"].splitlines()[0]).read_text()
    assert all(f">{ordering}<" in page for ordering in ("DP", "N-DP"))
    for model in ("n_dp", "dp"):
        config = json.loads((project.root / "exports" / model / "config.json").read_text())
        assert config["num_hidden_layers"] == 2


def test_renumbered_layers_are_compared_with_what_they_were(project: Project) -> None:
    """Q-DP-KD keeps layers 0 and 3: layer 1 of the result was 3, and an update of another's weights would be as large
    as weights are."""
    rows = project.query("SELECT layer, update_rms FROM layer_diagnostics WHERE model = 'q_dp_kd'")
    assert {layer.split(".")[2] for layer, _ in rows} == {"0", "1"} and len(rows) == 14
    assert all(0 < update < 0.01 for _, update in rows), rows


def test_what_a_technique_refuses_is_said_before_any_work(project: Project) -> None:
    raw = project.read()
    raw["techniques"]["DP"] = {"drop": 9}
    project.write(raw)
    try:
        found = commands(project, "check", "plan", "doctor")
    finally:
        raw["techniques"]["DP"] = {"drop": 2}
        project.write(raw)
    for text in found.values():
        assert "DP cannot be applied to it: it would drop 9 of 4 layers" in text
