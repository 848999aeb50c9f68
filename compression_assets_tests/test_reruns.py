"""Running a study again: unchanged, changed, damaged, killed, in part, and through Dagster's own commands."""

import json
import re
import shlex
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from compression_assets.graph.run import _with_freed_parents
from compression_assets.study.files import load_study
from compression_assets.study.places import CLAIM
from compression_assets.weights.checkpoints import FREED
from compression_assets_tests.project import Project, changed

pytestmark = pytest.mark.timeout(700)

SPAWN = """
if __name__ == "__main__":
    from compression_assets.machine import workers
    workers.cuda_devices = lambda: 1
    from compression_assets.graph.run import run_study
    raise SystemExit(0 if run_study('key:"base_model"') else 1)
"""
REPOSITORY = Path(__file__).parents[1]
ORDERINGS = ["Q", "P-KD-Q", "Q-P-KD"]
PERPLEXITY_ALONE = {"perplexity": {"batch_size": 8}}
NODES = {"base", "teacher", "q", "p", "p_kd", "p_kd_q", "q_d", "q_d_p", "q_d_p_kd", "q_p_kd"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("finished"), orderings=ORDERINGS, evaluation=PERPLEXITY_ALONE)
    code, output = project.compression("run")
    assert code == 0, output
    return project


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Project:
    """A finished study of this test's own."""
    project = Project(tmp_path, orderings=ORDERINGS, evaluation=PERPLEXITY_ALONE)
    shutil.rmtree(project.storage)
    shutil.copytree(
        finished.storage,
        project.storage,
        copy_function=shutil.copy2,
        ignore=shutil.ignore_patterns(CLAIM),
    )
    return project


def test_a_second_run_recognises_every_step(copy: Project) -> None:
    before = {file: file.stat().st_mtime_ns for file in copy.root.rglob("*.safetensors")}
    code, output = copy.compression("run")
    assert code == 0, output
    assert changed(output) == set()
    assert {file: file.stat().st_mtime_ns for file in copy.root.rglob("*.safetensors")} == before


def test_only_a_run_that_makes_something_is_in_the_history(copy: Project) -> None:
    made: list[object] = []
    for deleted in (False, True):
        if deleted:
            shutil.rmtree(copy.root / "models" / "q")
        code, output = copy.compression("run")
        assert code == 0, output
        with dg.DagsterInstance.from_config(copy.dagster_home()) as instance:
            made += [changed(output), instance.get_runs_count()]
    assert made == [set(), 1, {"final_q"}, 2]


def test_a_changed_recipe_runs_only_what_depends_on_it(copy: Project) -> None:
    before = copy.versions()
    study = copy.read()
    study["techniques"]["P"]["ratio"] = 0.6
    copy.write(study)
    code, output = copy.compression("run")
    assert code == 0, output
    after = copy.versions()
    different = {model for model in NODES if before[model] != after[model]}
    assert different == {model for model in NODES if "p" in model.split("_")}
    assert changed(output) == {
        *("model_p", "model_p_kd", "final_p_kd_q", "model_q_d_p", "model_q_d_p_kd", "final_q_p_kd"),
        *("metrics_p_kd_q", "metrics_q_p_kd"),
    }


def test_an_ordering_that_ends_at_a_model_which_is_there_costs_its_measurement(copy: Project) -> None:
    before = copy.versions()
    copy.write({**copy.read(), "orderings": ["Q", "P-KD-Q", "Q-P-KD", "P-KD"]})
    code, output = copy.compression("run")
    assert code == 0, output
    assert changed(output) == {"metrics_p_kd"}
    assert copy.versions() == before
    assert copy.query("SELECT asset, parent FROM lineage WHERE model = 'p_kd'") == [("final_p_kd", "p")]
    copy.write({**copy.read(), "orderings": ["Q"]})
    code, output = copy.compression("run")
    assert code == 0, output
    assert copy.query("SELECT model FROM leaderboard ORDER BY ALL") == [("base",), ("q",)]
    assert copy.query("SELECT model FROM lineage ORDER BY ALL") == [("base",), ("q",)]


def test_teacher_logits_made_again_change_nothing(copy: Project) -> None:
    before = copy.versions()
    code, output = copy.compression("rebuild", "teacher_logits")
    assert code == 0, output
    assert changed(output) == {"teacher_logits"}
    code, output = copy.compression("run")
    assert code == 0, output
    assert changed(output) == set()
    assert copy.versions() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "--select", "nope"), "the selection 'nope' cannot be read"),
        (("run", "--select", "final_q("), "the selection 'final_q(' cannot be read"),
        (("run", "--select", 'key:"nope_*"'), "names no asset of study tiny"),
        (("run", "--ordering", "P-X"), "unknown technique"),
        (("rebuild", "final_pkdq"), "has no asset 'final_pkdq': did you mean 'final_p_kd_q'?"),
        (("query", "SELEC 1"), "does not exist yet"),
        (("check", "--study", "dmo"), "did you mean 'demo'?"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    project = Project(tmp_path, orderings=ORDERINGS, evaluation=PERPLEXITY_ALONE)
    code, output = project.compression(*arguments)
    assert code == 1
    assert sentence in output
    assert len(output.splitlines()) == 1, output


def test_a_damaged_model_is_named_and_rebuilt_on_request(copy: Project) -> None:
    file = copy.root / "models" / "p_kd" / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    code, output = copy.compression("run")
    assert code == 1
    assert re.search(
        r"models/p_kd is damaged: model.safetensors has sha256 .*compression rebuild model_p_kd", output
    )
    code, output = copy.compression("rebuild", "model_p_kd")
    assert code == 0, output
    assert file.read_bytes() == good
    code, output = copy.compression("run")
    assert code == 0, output
    assert changed(output) == set()


def test_a_killed_run_continues_where_it_stopped(finished: Project, tmp_path: Path) -> None:
    project = Project(tmp_path, orderings=ORDERINGS, evaluation=PERPLEXITY_ALONE)
    process = project.start(sys.executable, "-m", "compression_assets.cli", "run")
    deadline = time.monotonic() + 200
    while len(list((project.root / "models").glob("[a-z]*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = set(project.versions())
    assert 3 <= len(kept) < len(NODES)
    code, output = project.compression("run")
    assert code == 0, output
    made = {asset.partition("_")[2] for asset in changed(output) if asset.startswith(("final_", "model_"))}
    assert not made & kept
    assert project.versions() == finished.versions()
    assert not list(project.root.rglob(".building-*"))


def test_a_missing_upstream_fails_at_once_with_the_command(tmp_path: Path) -> None:
    project = Project(tmp_path, orderings=ORDERINGS, evaluation=PERPLEXITY_ALONE)
    code, output = project.command(
        "dagster", "asset", "materialize", "--select", "final_p_kd_q*",
        DAGSTER_HOME=project.dagster_home(), DAGSTER_MODULE_NAME="compression_assets",
    )  # fmt: skip
    assert code != 0
    assert "final_p_kd_q needs model_p_kd, which is not built yet" in output
    assert f"compression run --select '*model_p_kd' --study {shlex.quote(str(project.study_file))}" in output
    assert not (project.root / "models").exists()


def test_a_model_with_all_before_and_after_it_in_a_new_storage(tmp_path: Path) -> None:
    """What measures a model needs more than the model's ancestors; that is made on the way."""
    project = Project(tmp_path, orderings=["Q", "P-Q"])
    code, output = project.command(
        *("dagster", "asset", "materialize", "-m", "compression_assets", "--select", "*final_p_q*"),
        DAGSTER_HOME=project.dagster_home(),
    )
    assert code == 0, output
    row = project.query(
        "SELECT ordering, perplexity > 1, g_eval IS NOT NULL, f1 IS NOT NULL FROM leaderboard ORDER BY ALL"
    )
    # The base is there because every model is compared with what it predicts.
    assert row == [("P-Q", True, True, True), ("base", True, False, False)]
    assert {name for (name,) in project.query("SELECT DISTINCT model FROM step_diagnostics")} >= {"p", "p_q"}
    assert not (project.root / "models" / "q").exists()
    assert (project.root / "reports" / "report.html").exists()


def test_the_dagster_command_materialises_and_keeps_history(copy: Project) -> None:
    home = copy.dagster_home()
    code, output = copy.command(
        "dagster",
        "asset",
        "materialize",
        "-m",
        "compression_assets",
        "--select",
        "final_p_kd_q*",
        DAGSTER_HOME=home,
    )
    assert code == 0, output
    assert "final_p_kd_q is unchanged" in output
    with sqlite3.connect(Path(home) / "history" / "runs.db") as history:
        last = history.execute("SELECT status FROM runs ORDER BY id DESC LIMIT 1").fetchone()
    assert last == ("SUCCESS",)


def test_the_job_of_one_ordering(copy: Project) -> None:
    config = {"ops": {"materialize_ordering": {"config": {"ordering": "q-p-kd"}}}}
    (copy.storage / "config.yaml").write_text(json.dumps(config))
    job = ("dagster", "job", "execute", "-m", "compression_assets", "-j", "one_ordering", "-c", "config.yaml")
    code, output = copy.command(*job, DAGSTER_HOME=copy.dagster_home())
    assert code == 0, output
    assert re.search(r"metrics_q_p_kd +unchanged", output)
    assert "final_p_kd_q" not in output
    (copy.storage / "config.yaml").write_text(json.dumps(config).replace("q-p-kd", "kd-kd"))
    code, output = copy.command(*job, DAGSTER_HOME=copy.dagster_home())
    assert code != 0
    assert "kd-kd: compression: study tiny has no ordering KD-KD; it has base" in output


def test_dg_checks_and_launches(copy: Project) -> None:
    environment = {"DAGSTER_HOME": copy.dagster_home(), "DAGSTER_MODULE_NAME": "compression_assets"}
    code, output = copy.command("dg", "check", "defs", cwd=REPOSITORY, **environment)
    assert code == 0, output
    code, output = copy.command("dg", "launch", "--assets", "metrics_q", cwd=REPOSITORY, **environment)
    assert code == 0, output
    assert "metrics_q is unchanged" in output


def test_a_step_can_run_in_a_process_of_its_own(tmp_path: Path) -> None:
    """What a CUDA machine does, with the CPU doing the work."""
    project = Project(tmp_path, orderings=ORDERINGS, evaluation=PERPLEXITY_ALONE)
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    code, output = project.command(sys.executable, str(script))
    assert code == 0, output
    assert changed(output) == {"base_model"}


def test_one_ordering_alone(tmp_path: Path) -> None:
    project = Project(tmp_path, orderings=ORDERINGS, evaluation=PERPLEXITY_ALONE)
    code, output = project.compression("run", "--ordering", "q")
    assert code == 0, output
    assert set(project.versions()) == {"base", "q"}
    assert project.query("SELECT model FROM leaderboard ORDER BY ALL") == [("base",), ("q",)]
    code, output = project.compression("run", "--ordering", "KD-KD")
    assert code == 1
    assert "has no ordering KD-KD; it has base, Q" in output


def test_histories_of_two_studies_do_not_mix(finished: Project) -> None:
    project = finished
    code, output = project.command(
        sys.executable, "-c", "import compression_assets; compression_assets.defs()",
        COMPRESSION_STUDY="smoke", DAGSTER_HOME=project.dagster_home(),
    )  # fmt: skip
    assert code != 0
    assert "whose history is kept in" in output
    assert "use_study smoke" in output


def test_a_model_is_rebuilt_with_those_above_it_whose_masters_were_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESSION_STORAGE", str(tmp_path))
    study = load_study("smoke")
    study = study.model_copy(update={"orderings": ("P-KD-P-Q",)})
    for key, freed in (("p", True), ("p_kd", False), ("base", False)):
        (tmp_path / study.name / "models" / key).mkdir(parents=True)
        if freed:
            (tmp_path / study.name / "models" / key / FREED).write_text(f"model_{key}")
    assert _with_freed_parents(study, ("model_p_kd",)) == ("model_p_kd", "model_p")
    assert _with_freed_parents(study, ("model_p_kd_p", "metrics_base")) == ("model_p_kd_p", "metrics_base")
