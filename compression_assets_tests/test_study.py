"""Study files: what is read from them, and the one sentence that answers each mistake."""

import csv
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from compression_assets.errors import StudyError
from compression_assets.study.files import PRESETS, load_study, presets
from compression_assets.study.model import CorrectedTeacher, Study
from compression_assets.study.orderings import BASE_ORDERING, prefix_tree
from compression_assets.study.plain_yaml import read_mapping
from compression_assets_tests.tiny_models import tiny_directory

PAPER = ["KD", "P", "Q", "P-KD-Q", "KD-P-Q", "P-Q-KD", "KD-Q-P", "Q-KD-P", "Q-P-KD"]
TABLE_1 = PRESETS.parent / "data" / "paper_table_1.csv"
ABSENT: Any = object()
SMOKE = read_mapping(PRESETS / "smoke.yaml")


def study_file(directory: Path, *changes: tuple[str, Any]) -> Path:
    """A copy of the smoke preset with ("key/path", value) changes, next to a chat file of its own."""
    (directory / "chat.jsonl").write_text("")
    raw = deepcopy(SMOKE) | {"name": "mine"}
    raw["data"]["chat"] = {"kind": "jsonl", "path": "chat.jsonl"}
    for location, value in changes:
        *parents, last = location.split("/")
        place = raw
        for key in parents:
            place = place[key]
        if value is ABSENT:
            del place[last]
        else:
            place[last] = value
    path = directory / "mine.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def load(directory: Path, *changes: tuple[str, Any]) -> Study:
    return load_study(study_file(directory, *changes))


def refusal(path: str | Path) -> str:
    with pytest.raises(StudyError) as refused:
        load_study(path)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 450, message
    return message


@pytest.mark.parametrize("name", ["demo", "paper", "smoke"])
def test_a_preset_is_the_papers_ten_models(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.description
    assert [ordering.text for ordering in study.parsed_orderings] == ["base", *PAPER]
    assert len(prefix_tree(study.parsed_orderings)) == 23
    assert study.distils
    assert study.recipe("KD").temperature == study.distillation_temperature == 2.0
    assert study.recipe("D") is not None


def test_every_list_of_a_recipe_can_be_written_in_a_file(tmp_path: Path) -> None:
    study = load(
        tmp_path,
        ("techniques/P:choose", {"cut": "choose", "target": 0.8, "among": ["width", "hidden"]}),
        ("techniques/Q:mixed", {"kind": "mixed", "bits": 6.0, "formats": ["int4", "bf16"], "group_size": 32}),
    )
    assert study.recipe("P:choose").among == ("width", "hidden")
    assert study.recipe("Q:mixed").formats == ("int4", "bf16")


@pytest.mark.parametrize(
    ("quantization", "served", "multiple"),
    [
        ({"kind": "nf4"}, [], 64),
        ({"kind": "int4"}, [], 128),
        ({"kind": "int4", "group_size": 32}, ["gguf:q4_0"], 128),
        ({"kind": "int8"}, [], 1),
        ({"kind": "nf4"}, ["gguf:q8_0", "gguf:q4_k_m"], 256),
        ({"kind": "nf4"}, ["gguf:iq4_nl"], 64),
    ],
)
def test_widths_fit_the_kernels_that_multiply_by_them(
    tmp_path: Path, quantization: dict[str, Any], served: list[str], multiple: int
) -> None:
    study = load(
        tmp_path,
        ("techniques/P/multiple_of", ABSENT),
        ("techniques/P:deep", {"cut": "depth"}),
        ("techniques/P:any", {"multiple_of": 1}),
        ("techniques/Q", quantization),
        ("orderings", ["P", "P:any", "P:deep", "P-Q"]),
        ("evaluation/serving", [{"model": "P", "format": form} for form in served]),
    )
    assert study.recipe("P").multiple_of == multiple
    assert study.recipe("P:any").multiple_of == 1, "what is written stands"
    assert study.recipe("P:deep").multiple_of is None, "whole layers have no width to round"
    plain = load(tmp_path, ("techniques/P/multiple_of", ABSENT), ("orderings", ["P", "KD"]))
    assert plain.recipe("P").multiple_of == 1, "nothing is quantized"


def test_the_presets() -> None:
    assert presets() == ["demo", "paper", "paper_scripts", "rescue", "smoke", "survival"]


def test_the_demo_trains_on_as_many_tokens_as_it_has_to() -> None:
    study = load_study("demo")
    sizes = {name: size.tokens for name, size in study.data.splits.sizes().items()}
    assert sizes == {
        "evaluation": 6144,
        "calibration": 2048,
        "finetuning": 12288,
        "teacher": 12288,
        "distillation": 24576,
    }
    assert isinstance(study.teacher, CorrectedTeacher)
    assert study.recipe("P").multiple_of == 64


def test_the_paper_preset_has_the_papers_settings() -> None:
    study = load_study("paper")
    kd, pruning, quantization = (study.recipe(name) for name in ("KD", "P", "Q"))
    assert (kd.alpha, kd.temperature, kd.epochs, kd.learning_rate, kd.warmup_steps) == (0.3, 2.0, 2, 1e-4, 50)
    # The scripts' two rows four times, in one pass.
    assert (kd.batch_size * kd.gradient_accumulation, kd.max_grad_norm) == (2 * 4, 0.5)
    assert (pruning.ratio, pruning.multiple_of, pruning.weight_share) == (0.30, 1, 0.5)
    assert (pruning.finetune.epochs, pruning.finetune.learning_rate, pruning.finetune.warmup_steps) == (
        2,
        5e-5,
        100,
    )
    assert (quantization.kind, quantization.blocksize, quantization.double_quant) == ("nf4", 64, True)
    sizes = {name: size.conversations for name, size in study.data.splits.sizes().items()}
    assert sizes == {"evaluation": 2311, "calibration": 500, "finetuning": 1500, "distillation": 20786}
    assert study.data.chat != study.data.evaluation_chat


def test_table_1_has_a_row_for_each_of_the_papers_models() -> None:
    with TABLE_1.open() as file:
        rows = list(csv.DictReader(file))
    orderings = {ordering.key: ordering.text for ordering in load_study("paper").parsed_orderings}
    assert {row["model"]: row["ordering"] for row in rows} == orderings
    assert {row["size_mb"] for row in rows if "-" in row["ordering"]} == {"1600.13"}


@pytest.mark.parametrize("name", presets())
def test_a_study_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    study = load_study(name)
    changed = study.model_dump(mode="json", by_alias=True) | {"name": "copy"}
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump(changed))
    assert load_study(tmp_path / "copy.yaml") == study.model_copy(update={"name": "copy"})


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    for spelling in (path, str(path), "mine.yaml", "./mine.yaml", Path("mine.yaml")):
        study = load_study(spelling)
        assert study.data.chat.path == str(tmp_path / "chat.jsonl")  # type: ignore[union-attr]


def test_paths_in_lists_and_of_task_files_are_relative_to_the_file_too(tmp_path: Path) -> None:
    tiny_directory(tmp_path / "model")
    model = {"name": "other", "source": {"kind": "directory", "path": "model"}}
    study = load(
        tmp_path,
        ("external_models", [model]),
        ("evaluation/harness", {"tasks": ["mine"], "include": "tasks"}),
    )
    assert study.external_models[0].source.path == str(tmp_path / "model")
    assert study.evaluation.harness is not None
    assert study.evaluation.harness.include == str(tmp_path / "tasks")


def test_a_step_that_is_not_used_needs_nothing(tmp_path: Path) -> None:
    study = load(
        tmp_path,
        ("teacher", ABSENT),
        ("orderings", ["q", "base"]),
        ("data/splits", {"evaluation": {"tokens": 100}}),
        ("techniques", {"Q": {}}),
    )
    assert not study.distils
    assert study.inputs == frozenset()
    assert study.parsed_orderings[0] == BASE_ORDERING
    assert [node.key for node in study.nodes.values()] == ["base", "q"]


def test_a_variant_lists_only_what_differs(tmp_path: Path) -> None:
    study = load(
        tmp_path,
        ("techniques/p:gentle", {"ratio": 0.2, "finetune": {"epochs": 3}}),
        ("techniques/P/finetune/learning_rate", 0.25),
        ("orderings", ["P:gentle-Q", "P-Q"]),
    )
    gentle, plain = study.recipe("P:gentle"), study.recipe("P")
    assert (gentle.ratio, gentle.multiple_of, gentle.finetune.epochs, gentle.finetune.learning_rate) == (
        0.2,
        64,
        3,
        0.25,
    )
    assert (plain.ratio, plain.finetune.epochs) == (0.3, 1)
    assert [node.key for node in study.nodes.values()] == ["base", "p_gentle", "p_gentle_q", "p", "p_q"]


def test_numbers_are_read_as_yaml_1_2_has_them(tmp_path: Path) -> None:
    path = study_file(tmp_path)
    path.write_text(path.read_text().replace("seed: 0\n", "seed: 010\n").replace("alpha: 0.3", "alpha: 5e-1"))
    assert load_study(path).recipe("KD").alpha == 0.5
    assert load_study(path).seed == 10


@pytest.mark.parametrize("coding", ["dense", "hidden"])
def test_stores_of_whole_distributions_serve_several_temperatures(tmp_path: Path, coding: str) -> None:
    changes = [("techniques/KD:hot", {"temperature": 4.0}), ("orderings", ["KD", "KD:hot"])]
    study = load(tmp_path, *changes, ("teacher_logits", {"coding": coding}))
    assert study.distillation_temperature == 2.0
    message = refusal(study_file(tmp_path, *changes, ("teacher_logits", {"coding": "top_k"})))
    assert "teacher_logits.coding 'top_k' serves one temperature, and the recipes have 2.0, 4.0" in message


@pytest.mark.parametrize(
    ("settings", "temperature", "warns"),
    [
        ({}, 2.0, ""),
        ({}, 1.0, ""),
        ({"coding": "dense"}, 4.0, ""),
        ({"coding": "top_k"}, 1.0, ""),
        ({"coding": "top_k", "k": 24}, 1.0, "takes k: 36 (k is 24)"),
        ({"coding": "top_k"}, 2.0, "takes k: 4096 (k is 36)"),
        ({"coding": "top_k", "k": 4096}, 2.0, ""),
        ({"coding": "top_k", "k": 9999}, 4.0, "was measured at no k"),
    ],
)
def test_a_coding_that_does_not_fit_the_temperature_is_warned_of(
    tmp_path: Path, settings: dict[str, Any], temperature: float, warns: str
) -> None:
    study = load(tmp_path, ("teacher_logits", settings), ("techniques/KD/temperature", temperature))
    assert study.teacher_logits.coding == settings.get("coding", "hidden")
    if not warns:
        assert study.warnings == []
        return
    (warning,) = study.warnings
    assert f"at a distillation temperature of {temperature:g}" in warning and warns in warning


def test_check_says_what_it_warns_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from compression_assets import cli

    for settings, warned in (({}, 0), ({"coding": "top_k"}, 1)):
        monkeypatch.setenv("COMPRESSION_STUDY", str(study_file(tmp_path, ("teacher_logits", settings))))
        monkeypatch.setattr("sys.argv", ["compression", "check"])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        assert capsys.readouterr().out.count("\nwarning: teacher_logits.coding 'top_k'") == warned


def test_sizes_of_a_coding_need_its_name(tmp_path: Path) -> None:
    message = refusal(study_file(tmp_path, ("teacher_logits", {"k": 64})))
    assert "k belongs to coding: top_k" in message


def test_two_hundred_orderings_load(tmp_path: Path) -> None:
    letters = [format(number, "08b").replace("0", "P-").replace("1", "KD-") for number in range(200)]
    path = study_file(tmp_path, ("orderings", [text + "Q" for text in letters]))
    assert len(load_study(path).nodes) > 400


def test_importing_a_study_twice_gives_equal_frozen_studies() -> None:
    study = load_study("smoke")
    assert study == load_study("smoke")
    with pytest.raises(ValueError, match="frozen"):
        study.seed = 1  # type: ignore[misc]


HUB = {"kind": "hub", "repo": "a/b"}

MALFORMED: list[tuple[list[tuple[str, Any]], str]] = [
    (
        [("techniques/KD/temprature", 2.0)],
        "unknown key 'temprature' in techniques.KD: did you mean 'temperature'?",
    ),
    (
        [("techniques/KD/temperatur", 2.0), ("techniques/KD/temperature", ABSENT)],
        "did you mean 'temperature'?",
    ),
    ([("orderngs", ["P"]), ("orderings", ABSENT)], "unknown key 'orderngs': did you mean 'orderings'?"),
    (
        [("techniques/P/finetune/lr", 1.0)],
        "unknown key 'lr' in techniques.P.finetune: allowed: epochs, learning_rate",
    ),
    ([("data/splits/test", {"tokens": 3})], "unknown key 'test' in data.splits"),
    ([("base_model/hidden", 64)], "unknown key 'hidden' in base_model: did you mean 'hidden_size'?"),
    ([("name", ABSENT)], "key 'name' is missing"),
    ([("data/max_length", ABSENT)], "key 'max_length' is missing in data"),
    ([("data/splits/evaluation", ABSENT)], "key 'evaluation' is missing in data.splits"),
    ([("base_model", HUB)], "key 'revision' is missing in base_model"),
    ([("base_model/kind", "hubb")], "base_model.kind 'hubb' is unknown: did you mean 'hub'?"),
    (
        [("base_model/kind", ABSENT)],
        "key 'kind' is missing in base_model; allowed: hub, directory, asset, gguf, wheel, random",
    ),
    ([("teacher", {"finetune": {}})], "key 'kind' is missing in teacher; allowed: model, corrected"),
    (
        [("teacher", {"kind": "model", "source": {"repo": "x"}})],
        "key 'kind' is missing in teacher.source; allowed: hub",
    ),
    ([("teacher/kind", "self")], "teacher.kind 'self' is unknown: allowed: model, corrected"),
    ([("base_model", "Qwen/Qwen2.5-3B")], "base_model must be"),
    ([("name", "../demo")], "name: '../demo' cannot name a directory"),
    ([("name", "a" * 49)], "cannot name a directory"),
    ([("name", "demo")], "name 'demo' is a preset's"),
    ([("name", 7)], "name must be text, not 7 (put it in quotes)"),
    ([("seed", -1)], "seed must be greater than or equal to 0, not -1"),
    ([("seed", "zero")], "seed must be a whole number, not 'zero'"),
    ([("seed", True)], "seed must be a whole number, not true"),
    ([("seed", 2**32)], "seed must be less than 4294967296"),
    ([("techniques/KD/alpha", 1.5)], "techniques.KD.alpha must be less than or equal to 1, not 1.5"),
    ([("techniques/KD/alpha", "0.3")], "techniques.KD.alpha must be a number, not '0.3'"),
    ([("techniques/KD/temperature", ".nan")], "techniques.KD.temperature must be a number, not '.nan'"),
    ([("techniques/KD/epochs", 1.5)], "techniques.KD.epochs must be a whole number, not 1.5"),
    ([("techniques/KD/epochs", None)], "techniques.KD.epochs must be a whole number, not nothing"),
    ([("techniques/P/finetune/epochs", 0)], "techniques.P.finetune.epochs must be greater than"),
    (
        [("techniques/Q/kind", "nf5")],
        "techniques.Q.kind must be 'nf4', 'fp4', 'int8', 'int4', 'int8_grouped' or 'mixed', not 'nf5'",
    ),
    ([("techniques/Q", None)], "techniques.Q must be a mapping of keys; write 'Q: {}'"),
    ([("techniques", ["KD"])], "techniques must be a mapping from techniques to recipes"),
    ([("techniques/KDD", {})], "techniques.KDD is no technique: unknown technique 'KDD': did you mean 'KD'?"),
    ([("techniques/kd", {})], "techniques.kd is there twice, in two spellings of KD"),
    ([("techniques/D:fast", {})], "D has no variants"),
    (
        [("data/splits/teacher", {"tokens": 5, "conversations": 5})],
        "data.splits.teacher: give a split's size as either",
    ),
    ([("data/splits/teacher", {})], "data.splits.teacher: give a split's size as either"),
    ([("data/splits/teacher/tokens", 0)], "data.splits.teacher.tokens must be greater than 0"),
    ([("data/splits/teacher", ABSENT)], "data.splits.teacher is missing, and KD in ordering 'KD' needs it"),
    (
        [("data/splits/calibration", ABSENT)],
        "data.splits.calibration is missing, and P in ordering 'P' needs it",
    ),
    ([("data/splits/distillation", ABSENT)], "data.splits.distillation is missing, and KD in ordering 'KD'"),
    ([("teacher", ABSENT)], "teacher is missing, and KD in ordering 'KD' needs it"),
    ([("data/chat/path", "none.jsonl")], "none.jsonl does not exist"),
    ([("data/chat/path", "package:none.jsonl")], "none.jsonl does not exist"),
    ([("base_model", {"kind": "directory", "path": "no_model"})], "base_model: "),
    ([("base_model", {"kind": "gguf", "path": "no.gguf"})], "base_model: "),
    ([("teacher", {"kind": "model", "source": {"kind": "gguf", "path": "no.gguf"}})], "teacher.source: "),
    ([("orderings", [])], "orderings must not be empty"),
    ([("description", "x" * 1001)], "description must have at most 1000 characters, not"),
    ([("orderings", "P-KD-Q")], "orderings must be a list, not 'P-KD-Q'"),
    ([("orderings", ["P", 5])], "orderings[1] must be text, not 5"),
    ([("orderings", ["P", "Q-D"])], "orderings[1] cannot run: ordering 'Q-D': it ends in D"),
    ([("orderings", ["P", "KT"])], "orderings[1] cannot run: ordering 'KT': unknown technique 'KT'"),
    ([("orderings", ["Q:stochastic-KD"])], "the variant Q:stochastic has no recipe"),
    (
        [("orderings", ["Q-P-KD", "q-d-p-kd-q"])],
        "orderings must be different: ordering 'q-d-p-kd-q' is listed twice",
    ),
    ([("techniques/P", ABSENT)], "P has no recipe in the study's techniques: add 'P: {}'"),
    ([("teacher_logits/coding", "topk")], "teacher_logits.coding must be"),
    (
        [("evaluation/perplexity/batch", 8)],
        "unknown key 'batch' in evaluation.perplexity: did you mean 'batch_size'?",
    ),
    ([("evaluation", None)], "evaluation must be"),
]


@pytest.mark.parametrize(("changes", "cause"), MALFORMED, ids=[cause for _, cause in MALFORMED])
def test_a_mistake_is_answered_with_one_sentence(
    tmp_path: Path, changes: list[tuple[str, Any]], cause: str
) -> None:
    path = study_file(tmp_path, *changes)
    message = refusal(path)
    assert cause in message
    assert message.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "this is none"),
        ("- a\n- b", "a study file is a mapping of keys"),
        ("name: a\nname: b", "(line 2): the key 'name' is there twice"),
        ("data:\n  seed: 1\n  seed: 2", "(line 3): the key 'seed' is there twice"),
        ("name: [a\nseed: 1", "cannot be read as YAML (line 2)"),
        ("name: a\n\tseed: 1", "(line 2): found character '\\t' that cannot start any token"),
        ("name: a: b", "(line 1): mapping values are not allowed here"),
        ("name: &x a\nseed: *x", "(line 2): aliases (*name) are not allowed"),
        ("name: !!python/object/apply:os.system [ls]", "(line 1): could not determine a constructor"),
        ("name: a\n---\nname: b", "expected a single document"),
        ("1: a", "(line 1): a key must be text"),
        ("? [a]\n: b", "a key must be text"),
        ("seed: 1e999", "the number 1e999 is too large"),
        (f"seed: {'9' * 5000}", "the number has more than 30 digits"),
        ("seed: .inf", "key 'name' is missing"),
        ("x: " + "[" * 3000, "cannot be read as YAML"),
        ("name: \x07", "special characters are not allowed"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(tmp_path: Path, text: str, cause: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refusal(path)
    assert cause in message
    assert message.startswith(f"{path}: ")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "there is no such study file" in refusal(tmp_path / "none.yaml")
    (tmp_path / "directory.yaml").mkdir()
    assert "is a directory" in refusal(tmp_path / "directory.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not text in UTF-8" in refusal(tmp_path / "binary.yaml")
    assert "its name must end in .yaml" in refusal(f"{tmp_path}/study.json")
    assert (
        "there is no study called 'dmeo': did you mean 'demo'? (presets: demo, paper, paper_scripts, rescue, smoke"
        in refusal("dmeo")
    )
    assert "presets: demo, paper, paper_scripts, rescue, smoke, survival" in refusal("")


def test_two_external_models_of_one_name_are_refused(tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
    raw["external_models"] = [{"name": "a", "source": {"kind": "random", "seed": seed}} for seed in (1, 2)]
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(StudyError, match="two models are called 'a'"):
        load_study(tmp_path / "x.yaml")
