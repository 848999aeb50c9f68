"""What is said of a study's models before any work, from their config.json."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compression_assets.errors import StudyError
from compression_assets.planning.devices import device
from compression_assets.planning.fit import refuse_directory, refuse_unfit
from compression_assets.planning.plan import make_plan
from compression_assets.sources.random_model import byte_tokenizer
from compression_assets.study.files import PRESETS, load_study
from compression_assets.study.model import Study
from compression_assets.takeaway.doctor import examine
from compression_assets.weights import architectures as known
from compression_assets_tests.architectures import config_of

FINETUNING = {"epochs": 1, "learning_rate": 1e-3, "warmup_steps": 1}


def directory(folder: Path, name: str, **changes: Any) -> Path:
    AutoModelForCausalLM.from_config(config_of(name, **changes)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def study_of(folder: Path, orderings: list[str], max_length: int = 64, **changes: Any) -> Study:
    """The smoke study on the model in `folder`; without a teacher where nothing distils."""
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
    raw |= {
        "name": "fit",
        "base_model": {"kind": "directory", "path": str(folder)},
        "orderings": orderings,
    } | changes
    raw["data"]["max_length"] = max_length
    raw["techniques"]["P"] |= {"ratio": 0.5, "multiple_of": 1}
    (folder.parent / "fit.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return load_study(folder.parent / "fit.yaml")


@pytest.mark.parametrize(
    ("name", "orderings", "says"),
    [
        (
            "Mixtral",
            ["Q"],
            r"Q cannot be applied to it: of models of type 'mixtral' Q would leave \d+% of the weights",
        ),
        ("Qwen2Moe", ["P"], "P cannot be applied to it: models of type 'qwen2_moe' are mixtures of experts"),
        (
            "Qwen3Moe",
            ["KD"],
            "KD cannot be applied to it: models of type 'qwen3_moe' are mixtures of experts",
        ),
        ("GptOss", ["Q"], r"'gpt_oss' Q would leave .* Q: \{accept_uncovered: true\}"),
        ("GPT2", ["KD-Q"], "'gpt2' have no linear layers that quantization covers"),
        ("Falcon", ["Q"], "'falcon' have no linear layers that quantization covers"),
        ("Bloom", ["P"], "'bloom' cannot be pruned: config.json has no key for the width"),
        ("Granite", ["KD"], "'granite' scale or cap"),
        ("Gemma2", ["P-Q"], "P cannot be applied to it: models of type 'gemma2' scale or cap"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    name: str, orderings: list[str], says: str, tmp_path: Path
) -> None:
    study = study_of(directory(tmp_path / "model", name), orderings)
    with pytest.raises(StudyError, match=f"^base_model: .*{says}") as caught:
        refuse_unfit(study, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(StudyError, match=says):
        make_plan(study, device("cpu"), tmp_path)
    with pytest.raises(StudyError, match=says):
        refuse_directory(study, "base_model", tmp_path / "model")
    (finding,) = [found for found in examine(study) if found.about == "models"]
    assert finding.ok is False
    assert re.search(says, finding.detail)


@pytest.mark.parametrize(
    ("name", "orderings"),
    [
        ("Phi3", ["KD-P-Q", "Q-P-KD"]),
        ("GPTNeoX", ["P-KD-Q"]),
        ("OPT", ["P-P-Q"]),
        ("GPT2", ["P-KD"]),
        ("Bloom", ["KD-Q"]),
        ("Granite", ["Q"]),
        ("Gemma2", ["Q"]),
        ("Mixtral", ["base"]),
    ],
)
def test_what_can_be_done_is_planned(name: str, orderings: list[str], tmp_path: Path) -> None:
    folder = directory(tmp_path / "model", name)
    study = study_of(folder, orderings)
    assert refuse_unfit(study, tmp_path) == []
    plan = make_plan(study, device("cpu"), tmp_path)
    assert plan.row("base_model").parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    if any(row.technique == "P" for row in plan.rows):
        cut = next(row for row in plan.rows if row.technique == "P")
        assert (cut.parameters or 0) < (plan.row("base_model").parameters or 0)


def test_models_with_uncovered_weights_are_quantized_if_the_study_says_so(tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text())["techniques"]
    raw["Q"] = {"accept_uncovered": True}
    refuse_unfit(study_of(directory(tmp_path / "model", "Mixtral"), ["Q"], techniques=raw), tmp_path)


def test_linear_layers_outside_of_decoder_layers_cannot_be_rounded_by_output(tmp_path: Path) -> None:
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text())["techniques"]
    raw["Q"] = {"rounding": "gptq"}
    for width, fits in ((64, True), (32, False)):
        folder = directory(tmp_path / str(width), "OPT", word_embed_proj_dim=width)
        study = study_of(folder, ["Q"], techniques=raw)
        if fits:
            refuse_unfit(study, tmp_path)
        else:
            with pytest.raises(StudyError, match="'opt' cannot be taken layer by layer"):
                refuse_unfit(study, tmp_path)


@pytest.mark.parametrize(("name", "reads"), [("OPT", 128), ("Llama", 128), ("GPT2", 128), ("Bloom", None)])
def test_rows_longer_than_a_model_reads_are_refused(name: str, reads: int | None, tmp_path: Path) -> None:
    folder = directory(tmp_path / "model", name)
    refuse_unfit(study_of(folder, ["KD"], max_length=128), tmp_path)
    longer = study_of(folder, ["KD"], max_length=129)
    if reads is None:
        refuse_unfit(longer, tmp_path)
        return
    with pytest.raises(StudyError, match=r"data\.max_length is 129, but this model reads 128 tokens"):
        refuse_unfit(longer, tmp_path)


@pytest.mark.parametrize(
    ("scaling", "reads"),
    [
        ({}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"type": "linear", "factor": 2.0}, 8192),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
    ],
)
def test_a_rotary_scaling_stretches_what_a_model_reads(scaling: dict[str, Any], reads: int) -> None:
    config = {"model_type": "llama", "max_position_embeddings": 4096, "rope_scaling": scaling}
    assert known.positions(config) == reads


def test_other_shapes_than_the_config_gives_are_named(tmp_path: Path) -> None:
    folder = directory(tmp_path / "model", "Llama")
    study = study_of(folder, ["Q"])
    refuse_unfit(study, tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name][:, :96].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        StudyError, match=rf"{name} in .* is \[64, 96\], but config.json asks for \[64, 128\]"
    ):
        refuse_unfit(study, tmp_path)


def test_a_teacher_is_looked_at_as_well(tmp_path: Path) -> None:
    base, teacher = directory(tmp_path / "model", "Llama"), directory(tmp_path / "teacher", "Cohere")
    source = {"kind": "model", "source": {"kind": "directory", "path": str(teacher)}}
    study = study_of(base, ["KD"], teacher=source)
    with pytest.raises(StudyError, match=r"^teacher\.source: models of type 'cohere' scale or cap"):
        refuse_unfit(study, tmp_path)
    refuse_unfit(study_of(base, ["Q"], teacher=source), tmp_path)


def test_a_model_that_is_not_on_this_machine_is_looked_at_later(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    hub = {"kind": "hub", "repo": "nobody/unheard-of", "revision": "main"}
    (note,) = refuse_unfit(study_of(tmp_path / "model", ["P"], base_model=hub), tmp_path)
    assert note.startswith("base_model: looked at when it is fetched")
