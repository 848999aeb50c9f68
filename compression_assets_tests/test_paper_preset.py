"""The paper's preset, every setting of it, on tiny models of the same structure.

Tied embeddings, biases on q, k and v, a teacher with another shape and a longer padded vocabulary, widths that are not
rounded, moments in 8 bits, checkpointed activations, the teacher in 8 bits where there is CUDA. A study of some twenty
steps: `make test-faults` has the time for it.
"""

from pathlib import Path

import pytest
import yaml

from compression_assets.study.files import PRESETS
from compression_assets_tests.project import Project

STUDENT = {"kind": "random", "architecture": "qwen2", "vocab_size": 288, "intermediate_size": 172}
TEACHER = STUDENT | {"vocab_size": 304, "hidden_size": 128, "tie_word_embeddings": False, "seed": 1}
CHAT = {"kind": "jsonl", "path": "package:smoke_chat.jsonl"}
CONVERSATIONS = {"evaluation": 3, "calibration": 3, "finetuning": 4, "distillation": 8}


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_the_papers_longest_ordering_and_the_controls_run_as_the_preset_says(tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "paper.yaml").read_text())
    raw["base_model"], raw["teacher"]["source"] = STUDENT, TEACHER
    data = raw["data"]
    data["splits"] = {name: {"conversations": count} for name, count in CONVERSATIONS.items()}
    data["chat"], data["max_length"] = CHAT, 128
    del data["evaluation_chat"], data["questions"]
    raw["orderings"], raw["evaluation"] = ["Q-P-KD"], {"perplexity": {"batch_size": 8}}
    raw["techniques"]["FT"] = {"epochs": 1, "warmup_steps": 1}
    raw["techniques"]["KD:matched"] = {"max_tokens": 100}
    raw["orderings"] += ["FT", "KD:matched@3"]
    raw["external_models"] = []
    project = Project(tmp_path, **raw | {"name": "tiny"})

    code, output = project.compression("run")
    assert code == 0, output
    rows = project.query(
        "SELECT model, technique, seed, tokens_seen FROM lineage WHERE technique IS NOT NULL"
    )
    lineage = {model: (technique, seed, tokens) for model, technique, seed, tokens in rows}
    assert [lineage[key][0] for key in ("q", "q_d", "q_d_p", "q_d_p_kd", "q_p_kd")] == [
        "Q",
        "D",
        "P",
        "KD",
        "Q",
    ]
    assert lineage["kd_matched_s3"][:2] == ("KD:matched@3", 3)
    assert 100 <= lineage["kd_matched_s3"][2] < lineage["q_d_p_kd"][2]
    assert lineage["ft"][0] == "FT"
    # 172 - floor(0.3 * 172), as 11,008 -> 7,706: no multiple of anything, so the CPU's NF4 kernels do not take it.
    assert "answers_on" in (project.root / "models" / "q_p_kd" / "manifest.json").read_text()
    planned = dict(project.query("SELECT asset, size_bytes FROM plan"))
    for asset in ("base_model", "teacher_model", "model_q_d_p_kd", "final_ft"):
        directory = (
            project.root / "models" / asset.partition("_")[2].replace("model", asset.partition("_")[0])
        )
        directory = directory if directory.is_dir() else project.root / "models" / asset.partition("_")[0]
        assert planned[asset] == (directory / "model.safetensors").stat().st_size
    seeds = project.query("SELECT ordering, n FROM leaderboard_seeds WHERE metric = 'perplexity'")
    assert dict(seeds)["KD:matched"] == 1
