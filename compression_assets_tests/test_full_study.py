"""A whole study, run as a user runs it: what it leaves on disk and in the database."""

import json
import sys

import pytest

from compression_assets.evaluation.answers import read_answers
from compression_assets.store.fingerprints import file_sha256
from compression_assets.text.questions import read_question_set
from compression_assets_tests.project import Project

pytestmark = pytest.mark.timeout(700)

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
    with torch.no_grad():
        logits = model(**inputs).logits
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    answers[path] = {
        "new": ids.shape[1] - inputs["input_ids"].shape[1],
        "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
        "finite": bool(torch.isfinite(logits).all())}
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def project(finished_study: Project) -> Project:
    return finished_study


def test_ten_models_and_a_leaderboard(project: Project) -> None:
    assert set(project.versions()) == NODES
    distances = project.query(
        "SELECT model, kl_to_base, kl_to_base_lo, kl_to_base_hi, top_1_agreement FROM leaderboard"
    )
    base = next(row for row in distances if row[0] == "base")
    assert (base[1], base[4]) == (0.0, 1.0)
    for model, kl, lo, hi, agreed in set(distances) - {base}:
        assert 0 < lo <= kl <= hi and 0 <= agreed < 1, model
    rows = project.query("SELECT model, ordering, perplexity, size_mib, compression_ratio FROM leaderboard")
    assert tuple(row[0] for row in rows) == ORDERINGS
    by_model = {row[0]: row for row in rows}
    assert by_model["p_kd_q"][1] == "P-KD-Q"
    assert all(1 < row[2] < 1000 for row in rows)
    sizes = {model: row[3] for model, row in by_model.items()}
    assert sizes["base"] == sizes["kd"] > sizes["p"] > sizes["q"] > sizes["p_kd_q"]
    # NF4 descriptors are JSON text with a printed float: a few bytes of difference, not of weights.
    assert max(sizes[key] for key in FINAL_SIX) - min(sizes[key] for key in FINAL_SIX) < 0.002
    for model, row in by_model.items():
        file = project.root / "models" / model / "model.safetensors"
        assert row[3] == pytest.approx(file.stat().st_size / 2**20)
        assert row[4] == pytest.approx(sizes["base"] / sizes[model])


def test_every_model_has_answered_every_question(project: Project) -> None:
    rows = project.query(
        "SELECT model, id, question, context, answer, n_tokens FROM answers ORDER BY model, position"
    )
    questions = read_question_set(project.root / "data" / "question_set")
    for model in ORDERINGS:
        mine = [row[1:] for row in rows if row[0] == model]
        assert [row[:3] for row in mine] == [(one.id, one.question, one.context) for one in questions]
        kept = read_answers(project.root / "answers" / model)
        assert [row[3:] for row in mine] == [(one.answer, one.n_tokens) for one in kept]
    agreeing = dict(project.query("SELECT model, four_bit_logit_cosine FROM leaderboard"))
    assert agreeing["base"] is None and agreeing["p"] is None
    assert all(agreeing[model] > 0.99 for model in ("q", *FINAL_SIX))


def test_metrics_tables_say_what_they_rest_on(project: Project) -> None:
    columns = [row[0] for row in project.query("DESCRIBE metrics.p_kd_q")]
    assert columns == [
        "metric",
        "value",
        "lo",
        "hi",
        "unit",
        "n",
        "n_failed",
        "higher_is_better",
        "aggregate",
        "note",
        "part",
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
    assert set(lineage) == NODES
    assert lineage["q_p_kd"] == "q_d_p_kd"


def test_every_final_model_answers_in_a_fresh_process(project: Project) -> None:
    paths = [str(project.root / "models" / key) for key in ORDERINGS]
    code, output = project.command(sys.executable, "-c", LOAD_ALL, *paths)
    assert code == 0, output
    answers = json.loads(output.splitlines()[-1])
    for path in paths:
        assert 1 <= answers[path]["new"] <= 5
        assert answers[path]["finite"]
    assert answers[paths[0]]["dtypes"] == ["torch.bfloat16"]
    assert "torch.uint8" in answers[paths[-1]]["dtypes"]


def test_no_split_shares_a_conversation(project: Project) -> None:
    files = str(project.root / "data" / "*" / "rows.parquet")
    assert project.query(f"SELECT id FROM '{files}' GROUP BY id HAVING count(*) > 1") == []


def test_manifests_tell_where_a_model_comes_from(project: Project) -> None:
    raw = json.loads((project.root / "models/p_kd_q/manifest.json").read_text())
    assert raw["parent"] == "model_p_kd"
    assert raw["path"] == ["P", "KD", "Q"]
    assert raw["files"]["model.safetensors"]["sha256"] == file_sha256(
        project.root / "models/p_kd_q/model.safetensors"
    )
    assert raw["peak_memory_bytes"] > 1e6
    assert set(raw["libraries"]) >= {"torch", "transformers", "bitsandbytes"}
    trained = json.loads((project.root / "models/p_kd/manifest.json").read_text())
    assert trained["tokens_seen"] >= project.read()["data"]["splits"]["distillation"]["tokens"]
    assert trained["metadata"]["loss_curve"]
