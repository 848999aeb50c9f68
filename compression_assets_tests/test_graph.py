"""The asset graph itself: a snapshot of the demo's, and what must hold for every study's.

Update the snapshot with `make update_snapshot` after a change that is meant.
"""

import json
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from compression_assets.graph.assets import code_references
from compression_assets.graph.assets.metrics import states_of_base
from compression_assets.graph.build import build_defs
from compression_assets.planning.costs import expected_seconds
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.study.files import PRESETS, load_study, presets
from compression_assets.study.leaderboard_models import parts
from compression_assets.study.names import TABLES, relative_directory

SNAPSHOT = Path(__file__).parent / "snapshots" / "demo_graph.json"


def described(defs: dg.Definitions) -> dict[str, Any]:
    graph = defs.resolve_asset_graph()
    return {
        key.to_user_string(): {
            "deps": sorted(parent.to_user_string() for parent in graph.get(key).parent_keys),
            "group": graph.get(key).group_name,
            "tags": {name: value for name, value in sorted(graph.get(key).tags.items()) if "/" not in name},
            "kinds": sorted(graph.get(key).kinds),
            "checks": sorted(check.name for check in graph.get(key).check_keys),
        }
        for key in sorted(graph.get_all_asset_keys())
    }


def test_the_demo_graph_is_the_one_we_know() -> None:
    now = described(build_defs(load_study("demo")))
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n")
    assert now == json.loads(SNAPSHOT.read_text()), "run `make update_snapshot` if this change is meant"


@pytest.mark.parametrize("name", presets())
def test_every_preset_builds_its_graph(name: str) -> None:
    study = load_study(name)
    defs = build_defs(study)
    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert keys == set(expected_seconds(study))
    for key in graph.get_all_asset_keys():
        assert graph.get(key).description
        assert graph.get(key).owners
        assert graph.get(key).code_version or key.path[-1] in TABLES


def test_selections_that_the_readme_promises() -> None:
    graph = build_defs(load_study("demo")).resolve_asset_graph()

    def names(selection: str) -> set[str]:
        return {key.to_user_string() for key in dg.AssetSelection.from_string(selection).resolve(graph)}

    assert names('key:"final_*"') == {
        f"final_{key}" for key in ("kd", "p", "q", "p_kd_q", "kd_p_q", "p_q_kd", "kd_q_p", "q_kd_p", "q_p_kd")
    }
    reports = {
        "leaderboard",
        "comparisons",
        "step_diagnostics",
        "judge_agreement",
        "report",
        "recommendation",
    }
    measured = {f"{part}_p_kd_q" for part in (*parts(load_study("demo")), "diagnostics")}
    assert names("final_p_kd_q*") == {"final_p_kd_q", *measured, *reports}
    upstream = {"base_model", "final_p", "model_p_kd", "final_p_kd_q", "teacher_model", "teacher_logits"}
    assert upstream <= names("*final_p_kd_q*")
    assert "final_q" not in names("*final_p_kd_q*")


def test_a_new_ordering_is_one_line_and_shares_its_prefix(tmp_path: Path) -> None:
    text = (PRESETS / "demo.yaml").read_text().replace("name: demo", "name: longer")
    (tmp_path / "longer.yaml").write_text(text.replace("  - P-KD-Q\n", "  - P-KD-Q\n  - P-KD\n"))
    before = set(described(build_defs(load_study("demo"))))
    after = set(described(build_defs(load_study(tmp_path / "longer.yaml"))))
    assert after - before == {"final_p_kd", *(f"{part}_p_kd" for part in parts(load_study("demo")))}
    assert before - after == {"model_p_kd", "diagnostics_p_kd"}


def test_jobs() -> None:
    names = {job.name for job in build_defs(load_study("demo")).resolve_all_job_defs()}
    assert {"demo", "full_study", "one_ordering"} <= names


def test_every_asset_links_to_the_source_that_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = build_defs(load_study("demo")).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        found = graph.get(key).metadata["dagster/code_references"].code_references
        assert found and all(Path(one.file_path).is_file() and one.line_number for one in found), key
    labels = [one.label for one in _references(graph, "final_p")]
    assert labels == [
        "compression_assets/graph/assets/models.py",
        "compression_assets.techniques.pruning.apply:prune_step",
        "compression_assets.techniques.pruning.recipe:PruningRecipe",
    ]
    file, line = _references(graph, "metrics_p")[0].file_path, _references(graph, "metrics_p")[0].line_number
    assert Path(file).read_text().splitlines()[line - 1].strip().startswith("def measure(")

    monkeypatch.setattr(code_references, "_repository", lambda: ("https://github.com/owner/name", "abc"))
    graph = build_defs(load_study("smoke")).resolve_asset_graph()
    urls = [one.url for one in _references(graph, "teacher_model")]
    assert urls[1] == "https://github.com/owner/name/tree/abc/compression_assets/training/finetuning.py#L1"


def _references(graph: Any, asset: str) -> list[Any]:
    return list(graph.get(dg.AssetKey(asset)).metadata["dagster/code_references"].code_references)


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@github.com:owner/name.git", "https://github.com/owner/name"),
        ("https://token@gitlab.example.org/owner/name.git", "https://gitlab.example.org/owner/name"),
        ("ssh://git@github.com/owner/name", "https://github.com/owner/name"),
        ("/srv/git/name.git", None),
    ],
)
def test_a_repositorys_address_has_no_credentials(remote: str, address: str | None) -> None:
    assert code_references.web_address(remote) == address


def test_states_of_the_base_serve_only_while_they_are_of_this_base_and_this_data(tmp_path: Path) -> None:
    study, store = load_study("smoke"), ArtifactStore(tmp_path)

    def make(asset: str, content: str, *inputs: str) -> None:
        directory = tmp_path / relative_directory(asset)
        read = {str(relative_directory(one)): version(one) for one in inputs}
        with store.building(directory) as work:
            (work / "content").write_text(content)
            store.publish(work, directory, asset=asset, fingerprint="", created_at="", inputs=read)

    def version(asset: str) -> str:
        made = store.manifest(tmp_path / relative_directory(asset), asset)
        assert made is not None
        return made.data_version

    make("base_model", "weights")
    make("evaluation_set", "tokens")
    make("metrics_base", "figures", "base_model", "evaluation_set")
    assert states_of_base(study, store) == tmp_path / "metrics" / "base" / "states.safetensors"
    make("evaluation_set", "other tokens")
    assert states_of_base(study, store) is None
    make("metrics_base", "figures", "base_model", "evaluation_set")
    assert states_of_base(study, store) is not None
    make("base_model", "other weights")
    assert states_of_base(study, store) is None
