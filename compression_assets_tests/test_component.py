"""Studies inside somebody's own Dagster project, laid out as `create-dagster` does it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster.components.core.package_entry import DG_PLUGIN_ENTRY_POINT_GROUP, get_package_objects_in_module

import compression_assets
from compression_assets.errors import StudyError
from compression_assets.sources.local import local_files
from compression_assets.sources.models import AssetModel, fetch_model
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.study.files import PRESETS
from compression_assets_tests.tiny_models import tiny_directory

REPOSITORY = Path(__file__).parents[1]
TYPE = "compression_assets.CompressionStudy"
SMOKE = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
TEAM_ASSET = '''
import dagster as dg

@dg.asset
def gpu_prices() -> None:
    """An asset of the team's own."""

@dg.definitions
def prices() -> dg.Definitions:
    return dg.Definitions(
        assets=[gpu_prices],
        resources={"storage": dg.ResourceDefinition.hardcoded_resource("the team's own")},
        executor=dg.in_process_executor,
    )
'''


class TeamProject:
    def __init__(self, folder: Path):
        self.root = folder / "team-project"
        self.package = self.root / "src" / "team_project"
        self.defs = self.package / "defs"
        self.defs.mkdir(parents=True)
        (self.root / "pyproject.toml").write_text(
            '[project]\nname = "team-project"\nversion = "0.1.0"\n\n'
            '[tool.dg]\ndirectory_type = "project"\n\n'
            f'[tool.dg.project]\nroot_module = "team_project"\nregistry_modules = ["{TYPE.partition(".")[0]}"]\n'
        )
        (self.package / "__init__.py").touch()
        (self.defs / "__init__.py").touch()
        (self.defs / "prices.py").write_text(TEAM_ASSET)
        (self.package / "definitions.py").write_text(
            "from pathlib import Path\nimport dagster as dg\n\n@dg.definitions\ndef defs():\n"
            "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
        )

    def add(self, name: str, attributes: dict[str, object]) -> Path:
        folder = self.defs / name
        folder.mkdir()
        (folder / "defs.yaml").write_text(yaml.safe_dump({"type": TYPE, "attributes": attributes}))
        return folder

    def load(self) -> dg.Definitions:
        return dg.load_from_defs_folder(path_within_project=self.package)

    def command(self, *arguments: str) -> str:
        paths = [str(self.root / "src"), str(REPOSITORY)]
        home = self.root / "dagster_home"
        home.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "DAGSTER_HOME": str(home)}
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TeamProject:
    project = TeamProject(tmp_path)
    monkeypatch.syspath_prepend(str(project.root / "src"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "team_project"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delenv("COMPRESSION_STORAGE", raising=False)
    return project


@pytest.fixture
def two_studies(team: TeamProject) -> TeamProject:
    """One study in a file beside its defs.yaml, one inside it."""
    folder = team.add("first", {"study": "first.yaml"})
    (folder / "first.yaml").write_text(yaml.safe_dump(SMOKE | {"name": "first"}))
    team.add("second", {"study": SMOKE | {"name": "second", "orderings": ["Q"]}, "key_prefix": "lab/llm"})
    return team


def test_two_studies_and_the_teams_own_assets_share_a_code_location(two_studies: TeamProject) -> None:
    defs = two_studies.load()
    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()
    keys = {key.to_user_string() for key in graph.get_all_asset_keys()}
    first = {key for key in keys if key.startswith("first/")}
    second = {key for key in keys if key.startswith("lab/llm/")}
    assert keys == first | second | {"gpu_prices"}
    assert {"first/final_p_kd_q", "lab/llm/final_q", "lab/llm/report"} <= keys
    assert "lab/llm/final_p_kd_q" not in keys
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert all(parent.path[:-1] == key.path[:-1] for parent in node.parent_keys)
        assert all(check.asset_key == key for check in node.check_keys)
        assert key.path == ["gpu_prices"] or node.group_name.startswith("_".join(key.path[:-1]) + "_")
    assert graph.get(dg.AssetKey(["first", "base_model"])).check_keys
    assert {parent.path[-1] for parent in graph.get(dg.AssetKey(["lab", "llm", "final_q"])).parent_keys} == {
        "base_model"
    }
    jobs = {job.name: job for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    assert set(jobs) == {"first_full_study", "lab_llm_full_study"}
    selected = {key.to_user_string() for key in jobs["lab_llm_full_study"].asset_layer.executable_asset_keys}
    assert selected == second


def test_a_step_of_either_study_runs_in_the_teams_project(two_studies: TeamProject) -> None:
    selection = "first/base_model,lab/llm/base_model"
    module = ("dagster", "asset", "materialize", "-m", "team_project.definitions")
    printed = two_studies.command(*module, "--select", selection)
    assert "RUN_SUCCESS" in printed
    for study in ("first", "second"):
        root = two_studies.root / "storage" / study
        manifest = ArtifactStore(root).manifest(root / "models" / "base", "base_model")
        assert manifest is not None
        assert manifest.asset == "base_model"
    with dg.DagsterInstance.from_config(str(two_studies.root / "dagster_home")) as instance:
        for key in (["first", "base_model"], ["lab", "llm", "base_model"]):
            assert instance.get_latest_materialization_event(dg.AssetKey(key)) is not None


def test_dg_scaffolds_a_study_that_loads(team: TeamProject) -> None:
    team.command("dagster_dg_cli.cli", "scaffold", "defs", TYPE, "my_study")
    folder = team.defs / "my_study"
    assert yaml.safe_load((folder / "defs.yaml").read_text()) == {
        "type": TYPE,
        "attributes": {"study": "my_study.yaml"},
    }
    keys = {key.to_user_string() for key in team.load().resolve_asset_graph().get_all_asset_keys()}
    assert "my_study/final_p_kd_q" in keys


def test_dg_finds_the_component_under_the_packages_name() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    registered = project["entry-points"][DG_PLUGIN_ENTRY_POINT_GROUP]
    assert registered == {"compression_assets": "compression_assets"}
    assert [name for name, _ in get_package_objects_in_module(compression_assets)] == ["CompressionStudy"]


def test_a_model_that_an_asset_of_the_team_makes_is_read_after_it(team: TeamProject, tmp_path: Path) -> None:
    released = tmp_path / "released"
    base = {"kind": "asset", "key": "lab/released", "path": str(released)}
    team.add("study", {"study": SMOKE | {"name": "fed", "base_model": base}})
    graph = team.load().resolve_asset_graph()
    key = dg.AssetKey(["fed", "base_model"])
    assert graph.get(key).parent_keys == {dg.AssetKey(["lab", "released"])}

    source = AssetModel(**base)
    with pytest.raises(StudyError, match="is not there yet: materialise the asset lab/released"):
        local_files(source)
    tiny_directory(released)
    assert {file.name for file in local_files(source)} >= {"config.json", "model.safetensors"}
    facts = fetch_model(source, tmp_path / "written", tmp_path)
    assert (facts["kind"], facts["origin"]) == ("asset", str(released))
