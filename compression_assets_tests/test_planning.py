"""What is planned against what is known: the paper's Table 1, models' published sizes, files written here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines import llama_cpp
from compression_assets.planning import costs, devices, work
from compression_assets.planning.devices import CARDS, device
from compression_assets.planning.models import config_of, known_models
from compression_assets.planning.plan import make_plan
from compression_assets.planning.rows import Plan
from compression_assets.planning.summary import as_markdown, as_text, database_rows, duration, sentences
from compression_assets.planning.widths import width_notes
from compression_assets.reporting.paper_table import read_paper_table
from compression_assets.sources.models import DirectoryModel, HubModel
from compression_assets.study.files import PRESETS, load_study
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.weights import checkpoints, shapes
from compression_assets.weights.files import WEIGHTS
from compression_assets.weights.formats.bf16 import FP32
from compression_assets.weights.formats.grouped_integer import Int4
from compression_assets.weights.formats.layout import everywhere
from compression_assets.weights.formats.nf4 import NF4
from compression_assets_tests.tiny_models import tiny_directory

MIB = 2**20


def planned(tmp_path: Path, name: str = "paper", card: str = "a6000", **changes: Any) -> Plan:
    study = load_study(name)
    if changes:
        raw = yaml.safe_load((PRESETS / f"{name}.yaml").read_text()) | {"name": "changed"} | changes
        (tmp_path / "changed.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        study = load_study(tmp_path / "changed.yaml")
    return make_plan(study, device(card), tmp_path)


def test_the_papers_sizes_come_out_of_its_models_configs(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    paper = {row["model"]: row["size_mib"] for row in read_paper_table()}
    for ordering in load_study("paper").parsed_orderings:
        asset = "base_model" if ordering.key == "base" else f"final_{ordering.key}"
        row = plan.row(asset)
        assert row.size / MIB == pytest.approx(paper[ordering.key], rel=2e-4)
    assert plan.row("base_model").parameters == 3_085_938_688
    ratios = [plan.base_size / plan.row(asset).size for asset in ("final_p", "final_q", "final_p_kd_q")]
    assert [round(ratio, 2) for ratio in ratios] == [1.31, 3.00, 3.68]


@pytest.mark.parametrize(
    ("repo", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-3B", 3_085_938_688),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("HuggingFaceTB/SmolLM2-360M", 361_821_120),
        ("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384),
    ],
)
def test_known_models_have_the_parameters_that_they_are_published_with(repo: str, parameters: int) -> None:
    assert shapes.parameters(known_models()[repo]) == parameters


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
    ],
)
def test_predicted_files_have_the_bytes_of_written_ones(
    tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    directory = tiny_directory(tmp_path / "model", architecture, num_hidden_layers=3, **settings)
    config = config_of(DirectoryModel(kind="directory", path=str(directory)), tmp_path)
    model = checkpoints.load_full_precision(directory)
    checkpoints.save_full_precision(model, tmp_path / "saved", directory, masters=True)
    assert shapes.file_bytes(config) == (tmp_path / "saved" / WEIGHTS).stat().st_size
    assert (
        shapes.file_bytes(config, everywhere(FP32()))
        == (tmp_path / "saved" / "masters" / WEIGHTS).stat().st_size
    )
    assert shapes.parameters(config) == model.num_parameters()
    for double_quant in (True, False):
        target = tmp_path / f"nf4_{double_quant}"
        quantize_checkpoint(directory, target, QuantizationRecipe(double_quant=double_quant))
        layers = 7 * config["num_hidden_layers"]
        predicted = shapes.file_bytes(config, everywhere(NF4(double_quant=double_quant)))
        difference = predicted - (target / WEIGHTS).stat().st_size
        assert abs(difference) <= (16 * layers if double_quant else 0)


@pytest.mark.parametrize("kind", ["qwen3", "mistral"])
def test_counting_agrees_with_the_meta_device(kind: str) -> None:
    config = known_models()["Qwen/Qwen2.5-0.5B"] | {
        "model_type": kind,
        "num_hidden_layers": 2,
        "head_dim": 64,
    }
    by_name = {tensor.name: (tensor.shape, tensor.linear) for tensor in shapes.tensors(config)}
    assert by_name == {tensor.name: (tensor.shape, tensor.linear) for tensor in shapes._on_meta(config)}


def test_the_papers_card_does_not_hold_full_adamw_and_the_plan_says_so(tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "paper.yaml").read_text())["techniques"]
    full = {"optimizer": "adamw", "gradient_checkpointing": False}
    raw["KD"] |= full
    raw["P"]["finetune"] |= full
    plan = planned(tmp_path, techniques=raw)
    assert any("final_kd" in sentence and "AdamW are 46 GiB" in sentence for sentence in plan.misfits)
    assert "does not fit: " in as_text(plan)
    assert any("optimizer: adamw_8bit" in sentence for sentence in plan.misfits)
    assert not planned(tmp_path, techniques=raw, card="h100").misfits
    # What the recipe has already is not advised.
    for name in ("KD", "P"):
        recipe = raw[name] if name == "KD" else raw[name]["finetune"]
        recipe |= {"optimizer": "adamw_8bit", "gradient_checkpointing": True}
    planned(tmp_path, techniques=raw)
    tight = make_plan(
        load_study(tmp_path / "changed.yaml"), replace(device("a6000"), memory=24 * 2**30), tmp_path
    )
    said = " ".join(tight.misfits)
    assert "final_kd" in said and "of adamw_8bit are 29 GiB" in said
    assert "write optimizer" not in said and "checkpointing" not in said


def test_the_paper_preset_fits_the_papers_card(tmp_path: Path) -> None:
    assert not planned(tmp_path).misfits


def test_rows_that_could_go_in_one_pass_are_named_on_a_gpu(tmp_path: Path) -> None:
    said = "FT, KD, KD:matched, KD:readme, P: batch_size 8 with gradient_accumulation 1 is the same training"
    study = load_study("paper_scripts")
    assert any(note.startswith(said) for note in make_plan(study, device("h100"), tmp_path).notes)
    assert not any("same training" in note for note in make_plan(study, device("cpu"), tmp_path).notes)
    assert not any(
        "same training" in note for note in make_plan(load_study("paper"), device("h100"), tmp_path).notes
    )


def test_a_shared_prefix_is_paid_once(tmp_path: Path) -> None:
    alone, both = (planned(tmp_path, orderings=listed) for listed in (["P-KD-Q"], ["P-KD-Q", "P-KD"]))
    assert [row.technique for row in both.rows] == ["fetched", "fetched", "logits", "P", "KD", "Q"]
    again = sum(both.row(asset).seconds for asset in ("model_p", "final_p_kd", "teacher_logits"))
    assert both.separate - alone.separate == pytest.approx(again)


def test_what_sharing_saves_is_what_is_made_twice_otherwise(tmp_path: Path) -> None:
    plan = planned(tmp_path, orderings=["Q", "P", "Q-P"], card="a100")
    made = sum(row.seconds for row in plan.rows if row.technique != "fetched")
    assert plan.separate - made == pytest.approx(plan.row("final_q").seconds)
    (sentence,) = (line for line in sentences(plan) if line.startswith("sharing"))
    assert f" saves {duration(plan.row('final_q').seconds)}: " in sentence
    assert sentence.endswith(f"{duration(plan.separate)} instead of {duration(made)}")


def test_the_table_says_of_a_step_what_the_sentences_say(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    most = max(row.memory or 0 for row in plan.rows)
    for room, fits in ((1.02, False), (1.06, True)):
        tight = make_plan(load_study("paper"), replace(device("a6000"), memory=int(most * room)), tmp_path)
        assert (not tight.misfits) is fits
        assert all(row["fits"] is not False for row in database_rows(tight)) is fits


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed: pip install --group test")
def test_files_for_engines_take_disk(tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "demo.yaml").read_text())
    served, without = (
        planned(tmp_path, "demo", "cpu", evaluation={**raw["evaluation"], "serving": serving})
        for serving in ([{"model": "base", "format": "gguf:q8_0"}], [])
    )
    weights = 134_515_008 - 30 * 2 * 576 - 576  # vectors are in float32
    tensors = weights // 32 * 34 + 4 * (134_515_008 - weights)
    assert without.exported == 0 < served.exported - tensors < 5e6  # and the vocabulary
    assert served.disk - without.disk == served.exported
    assert "0.14 of it files for engines" in as_text(served)


def test_tokens_and_logits_by_hand(tmp_path: Path) -> None:
    study = load_study("demo")
    plan = make_plan(study, device("cpu"), tmp_path)
    assert plan.row("final_kd").tokens == 24_576
    assert plan.row("final_p").tokens == 12_288
    # 576 dimensions of two bytes a token, and the output layer once.
    assert plan.row("teacher_logits").size == 24_576 * 1_152 + 49_152 * 1_152
    volume = work.volumes(study)["distillation"]
    weights = shapes.linear_parameters(known_models()["HuggingFaceTB/SmolLM2-135M"])
    lower = 6 * (volume.tokens * weights + volume.trained * 49_152 * 576)
    assert lower < plan.row("final_kd").flops < 1.4 * lower


def test_the_demo_takes_about_as_long_as_it_was_measured_to_take(tmp_path: Path) -> None:
    plan = make_plan(load_study("demo"), device("cpu"), tmp_path)
    # Content tokens a second on two cores: KD 146, fine-tuning 142; a quantization 6 to 8 s.
    kd, p, q = (plan.row(asset) for asset in ("final_kd", "final_p", "final_q"))
    assert 0.5 < (kd.seconds / kd.tokens) / (1 / 146) < 2
    assert 0.5 < (p.seconds / p.tokens) / (1 / 135) < 2
    assert 3 < q.seconds < 16


def test_time_left_begins_with_the_studys_own_model_and_this_machines_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, smoke = (
        sum(costs.costs_here(load_study(name), tmp_path, tmp_path).values()) for name in ("demo", "smoke")
    )
    assert 30 * 60 < demo < 50 * 60  # in two processes: half of it
    assert 30 < smoke < 120
    about = tmp_path / "0000:01:00.0" / "information"
    about.parent.mkdir()
    about.write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 0\n")
    assert devices.this_card(tmp_path) == devices.CARDS["h100"]
    about.write_text("Model: \t\t NVIDIA L4\n")
    assert devices.this_card(tmp_path) is None
    monkeypatch.setattr(costs, "this_card", lambda: devices.CARDS["h100"])
    monkeypatch.setattr(costs, "cuda_devices", lambda: 1)
    paper = costs.costs_here(load_study("paper"), tmp_path, tmp_path)
    assert 15 * 60 < paper["final_kd"] < 60 * 60
    assert paper["leaderboard"] == costs.LEAST["cuda"]


def test_an_unknown_model_and_an_unknown_device_are_named(tmp_path: Path) -> None:
    source = HubModel(kind="hub", repo="someone/unheard-of", revision="main")
    with pytest.raises(StudyError, match="shapes of someone/unheard-of are not known"):
        config_of(source, tmp_path)
    with pytest.raises(StudyError, match="device 'a600': did you mean 'a6000'"):
        device("a600")


def test_it_reads_as_a_table_everywhere(tmp_path: Path) -> None:
    plan = planned(tmp_path, "smoke", "cpu")
    assert as_markdown(plan).startswith("| model |")
    rows = database_rows(plan)
    assert {row["asset"] for row in rows} == {row.asset for row in plan.rows}
    assert all(row["fits"] is not False for row in rows)
    assert set(CARDS) == {"a6000", "a100", "h100"}


def test_widths_that_engines_do_not_take_whole_are_named(tmp_path: Path) -> None:
    shape = {"model_type": "llama", "vocab_size": 64, "num_hidden_layers": 1, "hidden_size": 2048}
    shape |= {"num_attention_heads": 16, "quantization_config": Int4().to_config()}
    pruned, whole = shape | {"intermediate_size": 7706}, shape | {"intermediate_size": 7680}
    (note,) = width_notes({"p_q": pruned, "q": whole}, {})
    assert "multiples of 128, and p_q has 7,706:" in note
    (note,) = width_notes({}, {"p": pruned, "p2": pruned, "narrow": whole | {"head_dim": 8}, "q": whole})[:1]
    assert "multiples of 256, and p and p2 have 7,706:" in note
    narrow = width_notes({}, {"narrow": whole | {"head_dim": 8}})
    assert len(narrow) == 1 and "narrow has 128:" in narrow[0]
    assert width_notes({"full": pruned | {"quantization_config": None}}, {"q": whole}) == []
    notes = planned(tmp_path, "demo", "cpu").notes
    assert sum("K-quants" in note for note in notes) == 2 and sum("Marlin" in note for note in notes) == 2
    assert not any("multiples of" in note for note in planned(tmp_path).notes)
