"""`evaluation.serving`: models as engines serve them, beside the leaderboard."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines import llama_cpp
from compression_assets.evaluation.engines.settings import ServedSettings
from compression_assets.planning.fit import _no_gguf, refuse_unfit
from compression_assets.reporting.leaderboard import leaderboard_text
from compression_assets.reporting.serving import not_faster
from compression_assets.sources.gguf_splitting import SPLITTINGS
from compression_assets.study.files import PRESETS, load_study
from compression_assets.study.leaderboard_models import served_models
from compression_assets.study.model import Study
from compression_assets.takeaway.serve import exported_file
from compression_assets.weights.formats.gguf_types import GgufForm
from compression_assets_tests.gguf_helpers import byte_level_tokenizer, put_tokenizer
from compression_assets_tests.made_results import made_results, metric_row
from compression_assets_tests.project import Project, changed
from compression_assets_tests.tiny_models import tiny_directory

SERVED = [
    {"model": "base"},
    {"model": "P"},
    {"model": "P-Q:int4", "format": "gguf:q4_0", "embeddings": "bf16"},
]


def study_with(folder: Path, serving: list[dict[str, Any]], **more: Any) -> Study:
    content = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
    content["techniques"]["Q:int4"] = {"kind": "int4"}
    content["evaluation"]["serving"] = serving
    file = folder / "serving.yaml"
    file.write_text(yaml.safe_dump({**content, "name": "serving", **more}))
    return load_study(file)


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed: pip install --group test")
def test_a_study_measures_what_it_serves(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(SPLITTINGS[2])
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    put_tokenizer(tiny_directory(tmp_path / "model", vocab_size=720, **ends), tokenizer)
    project = Project(tmp_path)
    study = {name: project.read()[name] for name in ("name", "seed", "data", "techniques")}
    study["techniques"]["Q:int4"] = {"kind": "int4"}
    study["base_model"] = {"kind": "directory", "path": str(tmp_path / "model")}
    study = {**study, "orderings": ["P"], "evaluation": {"serving": SERVED}}
    project.write(study)
    code, output = project.compression("run")
    assert code == 0, output

    names = ["base__q4_k_m", "p__q4_k_m", "p_q_int4__q4_0_embeddings_bf16"]
    rows = project.query(
        "SELECT model, form, engine, threads, perplexity, perplexity_lo, own_perplexity, tokens_per_second_at_8, "
        "resident_mib, time_to_first_token, size_mib FROM leaderboard JOIN serving USING (model) ORDER BY model"
    )
    assert [row[:3] for row in rows] == [(name, name.partition("__")[2], "llama_cpp") for name in names]
    assert all(value > 0 for row in rows for value in row[3:])
    for _, _, _, _, perplexity, lo, own, *_ in rows:
        assert lo < perplexity == pytest.approx(own, rel=0.01)
    for name in names:
        [check] = json.loads((project.root / "served" / name / "manifest.json").read_text())["checks"]
        assert check["name"] == "engine_agrees" and check["passed"], check
    assert (project.root / "models" / "p_q_int4").is_dir()
    assert project.query("SELECT count(*) FROM leaderboard WHERE model = 'p_q_int4'") == [(0,)]
    assert project.query("SELECT DISTINCT ordering FROM leaderboard_seeds ORDER BY ordering") == [
        ("P",),
        ("base",),
    ]

    code, output = project.compression("leaderboard")
    assert code == 0 and "P-Q:int4 as q4_0_embeddings_bf16" in output and "In llama_cpp (xllamacpp" in output
    assert exported_file(project.root, "p").name == "p.q4_k_m.gguf"
    code, output = project.compression("export", "p")
    card = (project.root / "exports" / "p" / "README.md").read_text()
    assert code == 0 and "## In engines" in card and "| P as q4_k_m |" in card and "base as" not in card

    study["evaluation"]["serving"][1]["format"] = "gguf:q8_0"
    project.write(study)
    code, output = project.compression("run")
    assert code == 0 and changed(output) == {"exported_p__q8_0", "served_p__q8_0"}, output
    code, output = project.compression("clean", "--dry-run")
    assert code == 0 and "exported/p__q4_k_m: a file that the study does not serve" in output, output
    assert "exported/p__q8_0" not in output


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"model": "P-KX"},
            r"evaluation.serving\[0\].model cannot be made: ordering 'P-KX': unknown technique 'KX'",
        ),
        (
            {"model": "P", "format": "gguf:q4_km"},
            "format 'gguf:q4_km' is unknown: did you mean 'gguf:q4_k_m'",
        ),
        ({"model": "P-Q"}, "P-Q is in NF4: in q4_k_m its weights would be rounded a second time"),
        ({"model": "P-Q", "format": "w4a16"}, r"P-Q ends in NF4: add a Q with kind: int4"),
        (
            {"model": "P", "format": "hf", "importance": True},
            "importance are of GGUF files, and the format is hf",
        ),
        ({"model": "P", "format": "gguf", "importance": True}, "bf16 rounds nothing"),
    ],
)
def test_what_cannot_be_served_is_told_at_once(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        study_with(tmp_path, [entry])


@pytest.mark.parametrize(
    ("base", "served", "said"),
    [
        (
            {"architecture": "gpt2"},
            {"model": "base"},
            "GGUF is written for llama, qwen2, qwen3, and this is a gpt2",
        ),
        ({}, {"model": "base", "embeddings": "q6_k"}, "embeddings of width 64 do not go into q6_k"),
        (
            {"intermediate_size": 80},
            {"model": "base", "format": "gguf:q4_0"},
            "rows of 80 weights are no multiple",
        ),
        ({"num_attention_heads": 2, "head_dim": 16}, {"model": "base"}, "those of this one are 32 in 64"),
        ({"architecture": "qwen3", "attention_bias": True}, {"model": "base"}, "no biases in its attention"),
        ({"hidden_act": "gelu"}, {"model": "base"}, "hidden_act 'gelu': serve it as hf"),
        (
            {"architecture": "llama", "num_attention_heads": 4, "head_dim": 20},
            {"model": "base", "format": "gguf:q4_0"},
            "rows of 80 weights are no multiple",
        ),
    ],
)
def test_what_gguf_cannot_hold_is_told_before_any_work(
    base: dict[str, Any], served: dict[str, Any], said: str
) -> None:
    config = {
        "model_type": base.get("architecture", "qwen2"),
        "hidden_size": 64,
        "intermediate_size": 192,
        **base,
    }
    form = ServedSettings(**served).gguf
    assert form is not None and said in str(_no_gguf(form, config))
    plain = {"hidden_act": "silu", "attention_bias": False}
    assert _no_gguf(GgufForm("q4_k_m"), {**config, **plain, "model_type": "llama"}) is None


def test_the_same_form_is_served_once(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="has the same model in the same form twice"):
        study_with(tmp_path, [{"model": "P-KD"}, {"model": "p-kd", "format": "gguf:q4_k_m"}])


def test_an_engine_that_is_not_there_is_asked_for_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_with(tmp_path, [{"model": "P"}, {"model": "P-Q:int4", "format": "w4a16"}])
    monkeypatch.delenv("COMPRESSION_VLLM", raising=False)
    with pytest.raises(StudyError, match=r"evaluation.serving\[1\]: vLLM is not there: install vllm"):
        refuse_unfit(study, tmp_path)
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    with pytest.raises(StudyError, match=r"evaluation.serving\[0\]: llama.cpp is not installed: pip install"):
        refuse_unfit(study, tmp_path)


def test_a_pruned_model_that_is_not_faster_says_so(tmp_path: Path) -> None:
    """Each beside the one with the same other steps, where there is one, and only in the same form."""
    entries = [{"model": model} for model in ("base", "KD", "P-KD")] + [{"model": "P", "format": "gguf:q8_0"}]
    study = study_with(tmp_path, entries)
    keys = [one.key for one in served_models(study)]
    assert keys == ["base__q4_k_m", "kd__q4_k_m", "p_kd__q4_k_m", "p__q8_0"]

    def results(speed: float) -> Any:
        speeds = dict(zip(keys, (300.0, 100.0, speed, 1.0), strict=True))
        found = made_results(study)
        names = {one.key: one.title for one in served_models(study)}
        served = {
            key: {
                "perplexity": metric_row("perplexity", 12.3),
                "tokens_per_second": metric_row("tokens_per_second", value)
                | {"lo": value - 5, "hi": value + 5},
            }
            for key, value in speeds.items()
        }
        about = {"engine": "llama_cpp", "version": "xllamacpp 1", "device": "cpu", "threads": 2}
        return replace(
            found, served=served, engines=dict.fromkeys(keys, about), names={**found.names, **names}
        )

    [said] = not_faster(results(104))
    assert said.startswith(
        "P-KD as q4_k_m is pruned and not measurably faster: 104 tokens/s, and KD as q4_k_m"
    )
    assert not_faster(results(111)) == []
    [said] = not_faster(results(50))
    assert said.startswith("P-KD as q4_k_m is pruned and slower: 50 tokens/s") and said.endswith(
        "(in every run)."
    )
    text = leaderboard_text(results(104))
    assert "not measurably faster" in text and "P as q8_0" in text
    assert max(map(len, text.splitlines())) <= 100
