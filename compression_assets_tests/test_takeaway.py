"""What is taken away from a study: the choice of a model, its card, its exports; and what cleaning may remove."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.settings import JudgeSettings
from compression_assets.sources.models import GgufModel, fetch_model
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.study.files import load_study
from compression_assets.study.model import Study
from compression_assets.takeaway import cleaning
from compression_assets.takeaway.doctor import Finding, _keys, as_text, examine
from compression_assets.takeaway.gguf_file import write_gguf
from compression_assets.takeaway.model_card import model_card
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.weights import checkpoints
from compression_assets_tests.tiny_models import tiny_directory


def test_a_model_card_tells_where_a_model_comes_from() -> None:
    step: dict[str, Any] = {
        "asset": "base_model",
        "technique": None,
        "seed": None,
        "tokens_seen": 0,
        "seconds": 1.0,
    }
    step |= {"device": "cpu", "data_version": "a" * 64, "recipe": {}}
    pruned = step | {"asset": "final_p", "technique": "P", "recipe": {"ratio": 0.3}, "tokens_seen": 400}
    metric = {"metric": "perplexity", "value": 12.5, "lo": 11.0, "hi": 14.0, "unit": "1", "n": 99}
    judged = metric | {"metric": "g_eval", "note": "UNTRUSTED: x judged none"}
    about = {"kind": "hub", "origin": "x/y@z", "license": "Apache-2.0"}
    card = model_card("p", "P", "demo", about, [step, pruned], [metric, judged], "60 %")
    assert "| G-Eval † |" in card and "† G-Eval is UNTRUSTED: x judged none." in card
    accuracy = metric | {"metric": "judge_accuracy", "note": "judge: tiny"}
    weak = metric | {"metric": "relevance", "note": "weak on copying (1 of 30)"}
    judge = JudgeSettings.model_validate({"model": {"kind": "likelihood"}})
    card_read = model_card("p", "P", "demo", about, [step], [judged, weak, accuracy], "95 %", judge)
    assert "| judge's score (by likelihood) † |" in card_read and "| G-Eval" not in card_read
    assert "Judge: tiny, which is read and not asked: its scores are not G-Eval's" in card_read
    assert "relevance (by likelihood): its judge is weak on copying (1 of 30)." in card_read
    assert "60 % interval" in card and "perplexity †" not in card
    assert card.startswith('---\nlicense: apache-2.0\nbase_model: "x/y"\n')
    in_words = model_card("p", "P", "demo", about | {"license": "MIT (weights): see NOTICE"}, [step], [])
    front = yaml.safe_load(in_words.split("---")[1])
    assert (front["license"], front["license_name"]) == ("other", "MIT (weights): see NOTICE")
    local = model_card("p", "P", "demo", about | {"kind": "directory"}, [step], [], library="gguf")
    assert "base_model:" not in local and "library_name: gguf" in local
    assert "base → P" in card and '`{"ratio": 0.3}`' in card and "11 to 14" in card


@pytest.mark.parametrize(("architecture", "quantized"), [("llama", False), ("qwen2", True)])
def test_a_gguf_file_holds_the_same_model(tmp_path: Path, architecture: str, quantized: bool) -> None:
    directory = tiny_directory(tmp_path / "model", architecture, vocab_size=264)
    with_a_merge(directory)
    if quantized:
        quantize_checkpoint(directory, tmp_path / "nf4", QuantizationRecipe())
        directory = tmp_path / "nf4"
    write_gguf(directory, tmp_path / "model.gguf", "tiny", "a test")
    fetch_model(GgufModel(kind="gguf", path=str(tmp_path / "model.gguf")), tmp_path / "back", tmp_path)
    before, after = (dict(checkpoints.dense_tensors(path)) for path in (directory, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert checkpoints.published(tensor).equal(after[name]), name
    text = "<|im_start|>user\nth the 42<|im_end|>"
    ids = [AutoTokenizer.from_pretrained(path)(text)["input_ids"] for path in (directory, tmp_path / "back")]
    assert ids[0] == ids[1] and {200, 201} & set(ids[0])


def with_a_merge(directory: Path) -> None:
    """GGUF has no empty list, and the byte tokenizer of the tests merges nothing."""
    content = json.loads((directory / "tokenizer.json").read_text())
    bytes_only = content["model"]["vocab"]
    kept = {text: index for text, index in bytes_only.items() if index not in (200, 201)}
    content["model"]["vocab"] = kept | {"th": 200, "the": 201}
    content["model"]["merges"] = [["t", "h"], ["th", "e"]]
    (directory / "tokenizer.json").write_text(json.dumps(content))


def test_gguf_is_refused_where_it_cannot_be_written(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "model")
    with pytest.raises(StudyError, match="merges nothing"):
        write_gguf(directory, tmp_path / "x.gguf", "x", "x")
    config = json.loads((directory / "config.json").read_text())
    for change in ({"hidden_act": "relu"}, {"use_sliding_window": True}):
        (directory / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(
            StudyError, match=r"llama.cpp (computes silu|attends to all positions) in a llama"
        ):
            write_gguf(directory, tmp_path / "x.gguf", "x", "x")
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    with pytest.raises(StudyError, match="GGUF is written for llama, qwen2, qwen3, and this is"):
        write_gguf(directory, tmp_path / "x.gguf", "x", "x")


def artifact(
    store: ArtifactStore, name: str, asset: str, parent: str | None = None, masters: bool = True
) -> None:
    """A model directory of the smoke study with a manifest, made from what its parent is now."""
    directory = store.root / "models" / name
    inputs = {}
    if parent is not None:
        made_from = store.manifest(store.root / "models" / parent, parent)
        assert made_from
        inputs = {f"models/{parent}": made_from.data_version}
    with store.exclusive(directory, asset), store.building(directory) as work:
        (work / "model.safetensors").write_bytes(name.encode())
        if masters:
            (work / "masters").mkdir()
            (work / "masters" / "model.safetensors").write_bytes(b"0" * 1000)
        store.publish(work, directory, asset=asset, fingerprint=name, created_at="now", inputs=inputs)


def freed(study: Study, root: Path, readers: dict[str, list[str]]) -> set[str]:
    return {str(item.path.relative_to(root)) for item in cleaning.unneeded(study, root, readers)}


def test_cleaning_takes_masters_once_all_that_is_made_of_them_is_there(tmp_path: Path) -> None:
    study, store = load_study("smoke"), ArtifactStore(tmp_path)
    # What reads a model besides the next steps is not built here.
    steps = {"model_p_kd": ["final_p_kd_q"], "final_p": ["model_p_kd"], "model_kd_p": ["final_kd_p_q"]}
    artifact(store, "base", "base_model", masters=False)
    artifact(store, "p", "final_p", "base")
    artifact(store, "p_kd", "model_p_kd", "p")
    artifact(store, "kd_p", "model_kd_p")
    assert freed(study, tmp_path, steps) == set()
    artifact(store, "p_kd_q", "final_p_kd_q", "p_kd", masters=False)
    artifact(store, "q_old", "final_q_old")
    artifact(store, "p_old", "model_p_old")
    (tmp_path / "models" / ".scratch-p_kd").mkdir()
    (tmp_path / "models" / ".scratch-q").mkdir()
    assert freed(study, tmp_path, steps) == {"models/p_kd/masters", "models/p_old", "models/.scratch-p_kd"}

    before = store.manifest(tmp_path / "models" / "p_kd", "model_p_kd")
    cleaning.free(tmp_path, cleaning.unneeded(study, tmp_path, steps))
    directory = tmp_path / "models" / "p_kd"
    assert not (directory / "masters").exists() and freed(study, tmp_path, steps) == set()
    after = store.require(directory, "model_p_kd", "a test")
    assert before and after.data_version == before.data_version
    assert store.finished(directory, "p_kd", "model_p_kd")
    with pytest.raises(StudyError, match=r"were freed.* compression rebuild model_p_kd"):
        checkpoints.masters_or_published(directory)
    assert (tmp_path / "models" / "p" / "masters").is_dir()
    assert (tmp_path / "models" / "q_old").is_dir()


def test_masters_stay_while_a_child_is_missing_or_out_of_date(tmp_path: Path) -> None:
    study, store = load_study("smoke"), ArtifactStore(tmp_path)
    steps = {"model_p_kd": ["final_p_kd_q"]}
    artifact(store, "p_kd", "model_p_kd")
    artifact(store, "p_kd_q", "final_p_kd_q", "p_kd")
    assert freed(study, tmp_path, {"model_p_kd": ["final_p_kd_q", "diagnosis_p_kd"]}) == set()
    assert freed(study, tmp_path, steps) == {"models/p_kd/masters"}
    (store.root / "models" / "p_kd" / "model.safetensors").write_bytes(b"other")
    with (
        store.exclusive(tmp_path / "models" / "p_kd", "x"),
        store.building(tmp_path / "models" / "p_kd") as work,
    ):
        (work / "model.safetensors").write_bytes(b"made again")
        (work / "masters").mkdir()
        store.publish(
            work, tmp_path / "models" / "p_kd", asset="model_p_kd", fingerprint="2", created_at="now"
        )
    assert freed(study, tmp_path, steps) == set()


def test_the_doctor_names_what_is_missing_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESSION_STORAGE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    findings = {finding.about: finding for finding in examine(load_study("smoke"))}
    assert findings["torch"].ok and findings["disk"].ok and findings["memory"].ok
    text = as_text([*findings.values(), Finding("x", False, "is missing")])
    assert "hf_secret" not in text and "HF_TOKEN" in text and "LACKS  x" in text


def test_the_doctor_asks_for_the_judges_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    (finding,) = (one for one in _keys(load_study("paper")) if one.about == "GEMINI_API_KEY")
    assert finding.ok is False and finding.detail == "not set; the judge needs it"
