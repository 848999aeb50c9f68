"""A whole study, run as a user runs it: real commands in real processes, a real database, tiny random models."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from compression_assets.resources.artifact_store import ArtifactStore, sha256_of
from compression_assets.study import PRESETS

ORDERINGS = ("base", "kd", "p", "q", "p_kd_q", "kd_p_q", "p_q_kd", "kd_q_p", "q_kd_p", "q_p_kd")
FINAL_SIX = ORDERINGS[4:]
NODES = {
    "base", "teacher", "kd", "p", "q", "p_kd", "p_kd_q", "kd_p", "kd_p_q", "p_q", "p_q_d", "p_q_d_kd", "p_q_kd",
    "kd_q", "kd_q_d", "kd_q_d_p", "kd_q_p", "q_d", "q_d_kd", "q_d_kd_p", "q_kd_p", "q_d_p", "q_d_p_kd", "q_p_kd",
}  # fmt: skip

LOAD_ALL = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
answers = {}
for path in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is a lake?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    answers[path] = {
        "new": ids.shape[1] - inputs["input_ids"].shape[1],
        "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
        "finite": bool(torch.isfinite(model(**inputs).logits).all())}
print(json.dumps(answers))
"""


class Project:
    """A study file of a user's own and a storage directory, driven through the command line."""

    def __init__(self, folder: Path):
        self.study_file = folder / "tiny.yaml"
        self.storage = folder / "my storage"
        self.root = self.storage / "tiny"
        self.storage.mkdir(exist_ok=True)
        raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
        self.write({**raw, "name": "tiny"})

    def write(self, study: dict[str, Any]) -> None:
        self.study_file.write_text(yaml.safe_dump(study, sort_keys=False))

    def read(self) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load(self.study_file.read_text())
        return content

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "COMPRESSION_STORAGE": str(self.storage),
            "COMPRESSION_STUDY": str(self.study_file),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def start(self, *arguments: str, **extra: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            arguments,
            env={**self.environment, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.storage,
        )

    def command(self, *arguments: str, **extra: str) -> tuple[int, str]:
        process = self.start(*arguments, **extra)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def compression(self, *arguments: str) -> tuple[int, str]:
        return self.command(sys.executable, "-m", "compression_assets.cli", *arguments)

    def dagster_home(self) -> str:
        code, output = self.compression("home")
        assert code == 0, output
        return output.strip()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self.root / "compression.duckdb"), read_only=True) as db:
            return db.execute(sql).fetchall()

    def versions(self) -> dict[str, str]:
        """Model -> data version, for every model directory."""
        store = ArtifactStore(self.root)
        found = {}
        for directory in (self.root / "models").iterdir():
            manifest = store.manifest(directory)
            assert manifest
            found[directory.name] = manifest.data_version
        return found


def changed(output: str) -> set[str]:
    """Assets that a run made (rather than found unchanged), from its progress lines."""
    lines = re.findall(r"\[ *\d+/\d+\] (\S+) +(\S+)", output)
    return {
        asset
        for asset, how in lines
        if how not in ("unchanged", "failed") and asset not in ("leaderboard", "paper_table_1")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    project = Project(tmp_path_factory.mktemp("whole study"))
    code, output = project.compression("run")
    assert code == 0, output
    return project, output


@pytest.fixture
def copy(finished: tuple[Project, str], tmp_path: Path) -> Project:
    """A finished study of this test's own."""
    project = Project(tmp_path)
    shutil.rmtree(project.storage)
    shutil.copytree(finished[0].storage, project.storage, copy_function=shutil.copy2)
    return project


def test_ten_models_and_a_leaderboard(finished: tuple[Project, str]) -> None:
    project, _ = finished
    assert set(project.versions()) == NODES
    rows = project.query("SELECT model, ordering, perplexity, size_mib, compression_ratio FROM leaderboard")
    assert tuple(row[0] for row in rows) == ORDERINGS
    by_model = {row[0]: row for row in rows}
    assert by_model["p_kd_q"][1] == "P-KD-Q"
    assert all(1 < row[2] < 400 for row in rows)
    sizes = {model: row[3] for model, row in by_model.items()}
    assert sizes["base"] == sizes["kd"] > sizes["p"] > sizes["q"] > sizes["p_kd_q"]
    # NF4 descriptors are JSON text with a printed float: a few bytes of difference, not of weights.
    assert max(sizes[key] for key in FINAL_SIX) - min(sizes[key] for key in FINAL_SIX) < 0.002
    for model, row in by_model.items():
        file = project.root / "models" / model / "model.safetensors"
        assert row[3] == pytest.approx(file.stat().st_size / 2**20)
        assert row[4] == pytest.approx(sizes["base"] / sizes[model])


def test_metrics_tables_say_what_they_rest_on(finished: tuple[Project, str]) -> None:
    project, _ = finished
    columns = [row[0] for row in project.query("DESCRIBE metrics.p_kd_q")]
    assert columns == [
        "metric",
        "value",
        "unit",
        "n",
        "higher_is_better",
        "data_version",
        "run_id",
        "measured_at",
    ]
    (n,) = project.query("SELECT n FROM metrics.p_kd_q WHERE metric = 'perplexity'")[0]
    (total,) = project.query(
        "SELECT sum(n_predicted) FROM '" + str(project.root / "data/evaluation_set/rows.parquet") + "'"
    )[0]
    assert n == total
    (recomputed,) = project.query(
        "SELECT exp(sum(value) / sum(weight)) FROM samples.p_kd_q WHERE metric = 'perplexity'"
    )[0]
    (stored,) = project.query("SELECT perplexity FROM leaderboard WHERE model = 'p_kd_q'")[0]
    assert recomputed == pytest.approx(stored)
    assert project.query("SELECT count(*) FROM paper_table_1") == [(10,)]
    lineage = dict(project.query("SELECT model, parent FROM lineage"))
    assert set(lineage) == NODES - {"teacher"}
    assert lineage["q_p_kd"] == "model_q_d_p_kd"


def test_every_final_model_answers_in_a_fresh_process(finished: tuple[Project, str]) -> None:
    project, _ = finished
    paths = [str(project.root / "models" / key) for key in ORDERINGS]
    code, output = project.command(sys.executable, "-c", LOAD_ALL, *paths)
    assert code == 0, output
    answers = json.loads(output.splitlines()[-1])
    for path in paths:
        assert 1 <= answers[path]["new"] <= 5
        assert answers[path]["finite"]
    assert answers[paths[0]]["dtypes"] == ["torch.bfloat16"]
    assert "torch.uint8" in answers[paths[-1]]["dtypes"]


def test_no_split_shares_a_conversation(finished: tuple[Project, str]) -> None:
    project, _ = finished
    files = str(project.root / "data" / "*" / "rows.parquet")
    assert project.query(f"SELECT id FROM '{files}' GROUP BY id HAVING count(*) > 1") == []


def test_manifests_tell_where_a_model_comes_from(finished: tuple[Project, str]) -> None:
    project, _ = finished
    raw = json.loads((project.root / "models/p_kd_q/manifest.json").read_text())
    assert raw["parent"] == "model_p_kd"
    assert raw["path"] == ["P", "KD", "Q"]
    assert raw["files"]["model.safetensors"]["sha256"] == sha256_of(
        project.root / "models/p_kd_q/model.safetensors"
    )
    assert raw["peak_memory_bytes"] > 1e6
    assert set(raw["libraries"]) >= {"torch", "transformers", "bitsandbytes"}
    trained = json.loads((project.root / "models/p_kd/manifest.json").read_text())
    assert trained["tokens_seen"] >= project.read()["data"]["splits"]["distillation"]["tokens"]
    assert trained["metadata"]["loss_curve"]


def test_a_second_run_recognises_every_step(copy: Project) -> None:
    before = {file: file.stat().st_mtime_ns for file in copy.root.rglob("*.safetensors")}
    code, output = copy.compression("run")
    assert code == 0, output
    assert changed(output) == set()
    assert {file: file.stat().st_mtime_ns for file in copy.root.rglob("*.safetensors")} == before


def test_a_changed_recipe_runs_only_what_depends_on_it(copy: Project) -> None:
    before = copy.versions()
    study = copy.read()
    study["techniques"]["P"]["ratio"] = 0.5
    copy.write(study)
    code, output = copy.compression("run")
    assert code == 0, output
    after = copy.versions()
    different = {model for model in NODES if before[model] != after[model]}
    assert different == {model for model in NODES if "p" in model.split("_")}
    assert changed(output) == {
        *(f"final_{key}" for key in ("p", *FINAL_SIX)),
        *(
            f"model_{key}"
            for key in (
                "p_kd",
                "kd_p",
                "p_q",
                "p_q_d",
                "p_q_d_kd",
                "kd_q_d_p",
                "q_d_kd_p",
                "q_d_p",
                "q_d_p_kd",
            )
        ),
        *(f"metrics_{key}" for key in ("p", *FINAL_SIX)),
    }


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


def test_a_killed_run_continues_where_it_stopped(finished: tuple[Project, str], tmp_path: Path) -> None:
    project = Project(tmp_path)
    process = project.start(sys.executable, "-m", "compression_assets.cli", "run")
    deadline = time.monotonic() + 200
    while len(list((project.root / "models").glob("[a-z]*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = set(project.versions())
    assert 4 <= len(kept) < len(NODES)
    code, output = project.compression("run")
    assert code == 0, output
    made = {asset.partition("_")[2] for asset in changed(output) if asset.startswith(("final_", "model_"))}
    assert not made & kept
    assert project.versions() == finished[0].versions()
    assert not list(project.root.rglob(".building-*"))


def test_a_missing_upstream_fails_at_once_with_the_command(tmp_path: Path) -> None:
    project = Project(tmp_path)
    code, output = project.command(
        "dagster", "asset", "materialize", "--select", "final_p_kd_q*",
        DAGSTER_HOME=project.dagster_home(), DAGSTER_MODULE_NAME="compression_assets",
    )  # fmt: skip
    assert code != 0
    assert "final_p_kd_q needs model_p_kd, which is not built yet" in output
    assert "dagster asset materialize -m compression_assets --select '*final_p_kd_q'" in output
    assert not (project.root / "models").exists()


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


def test_one_ordering_alone(tmp_path: Path) -> None:
    project = Project(tmp_path)
    code, output = project.compression("run", "--ordering", "q")
    assert code == 0, output
    assert set(project.versions()) == {"base", "q"}
    assert project.query("SELECT model FROM leaderboard") == [("q",)]
    code, output = project.compression("run", "--ordering", "KD-KD")
    assert code == 1
    assert "has no ordering KD-KD; it has base, KD" in output


def test_histories_of_two_studies_do_not_mix(finished: tuple[Project, str]) -> None:
    project, _ = finished
    code, output = project.command(
        sys.executable, "-c", "import compression_assets; compression_assets.defs",
        COMPRESSION_STUDY="smoke", DAGSTER_HOME=project.dagster_home(),
    )  # fmt: skip
    assert code != 0
    assert "whose history is kept in" in output
    assert "use_study smoke" in output
