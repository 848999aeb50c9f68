"""`training.gpus` of a study: which steps have several GPUs, which are refused, what the plan makes of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from compression_assets.errors import StudyError
from compression_assets.graph.assets.models import step_artifact
from compression_assets.planning.devices import device
from compression_assets.planning.fit import refuse_config
from compression_assets.planning.plan import make_plan
from compression_assets.planning.rows import Plan
from compression_assets.planning.summary import as_text, database_rows
from compression_assets.study.files import PRESETS, load_study
from compression_assets.study.model import Study
from compression_assets.training.sharing import unshared

GIB = 2**30


def study_with(directory: Path, preset: str = "paper", **changes: Any) -> Study:
    raw = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()) | {"name": "changed"} | changes
    (directory / "changed.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return load_study(directory / "changed.yaml")


def planned(directory: Path, card: str = "h100", **changes: Any) -> Plan:
    return make_plan(study_with(directory, **changes), device(card), directory)


def techniques(**changes: dict[str, Any]) -> dict[str, Any]:
    plain = yaml.safe_load((PRESETS / "paper.yaml").read_text())["techniques"]
    return plain | {name: (plain.get(name) or {}) | change for name, change in changes.items()}


FULL = techniques(
    KD={"optimizer": "adamw"}, P={"finetune": {"optimizer": "adamw", "gradient_checkpointing": True}}
)


def test_steps_that_train_have_the_gpus_and_the_same_models(tmp_path: Path) -> None:
    alone = study_with(tmp_path, techniques=FULL)
    shared = study_with(tmp_path, techniques=FULL, training={"gpus": 4})
    for path, node in shared.nodes.items():
        if node.parent is None:
            continue
        parent = shared.nodes[node.parent]
        made, before = (
            step_artifact(one, one.nodes[path], one.nodes[parent.path]) for one in (shared, alone)
        )
        assert made.code_version == before.code_version
        assert before.needed_gpus == 1
        assert made.needed_gpus == (4 if node.technique in ("KD", "P") else 1), path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"techniques": techniques(KD={"optimizer": "adamw_8bit"})},
            r"training\.gpus is not for KD: optimizer adamw_8bit works on one GPU: write adamw",
        ),
        (
            {"techniques": techniques(KD={"optimizer": "adamw", "adapter_rank": 8})},
            r"is not for KD: adapter_rank trains on one GPU",
        ),
        ({"techniques": FULL | {"QAD": {}}, "orderings": ["Q-QAD"]}, "is not for QAD: after every step"),
        (
            {"techniques": FULL | {"FT": {"optimizer": "paged_adamw_8bit"}}, "orderings": ["FT-Q"]},
            "is not for FT: optimizer paged_adamw_8bit",
        ),
    ],
)
def test_trainings_that_cannot_be_shared_are_refused_when_the_file_is_read(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    study_with(tmp_path, **changes)
    with pytest.raises(StudyError, match=sentence):
        study_with(tmp_path, **changes, training={"gpus": 2})


def test_a_model_with_linear_layers_beside_its_decoder_layers_is_refused_by_check(tmp_path: Path) -> None:
    from transformers import OPTConfig

    study = study_with(
        tmp_path, techniques={"KD": {"optimizer": "adamw"}}, orderings=["KD"], training={"gpus": 2}
    )
    sizes = {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    plain, projected = (OPTConfig(**sizes, word_embed_proj_dim=width).to_dict() for width in (64, 32))
    assert unshared(plain, 2) is None
    refuse_config(study, "base_model", plain)
    assert unshared(projected, 1) is None
    with pytest.raises(StudyError, match=r"base_model: KD has 2 GPUs: .* do not all lie in one list"):
        refuse_config(study, "base_model", projected)


def test_the_plan_says_how_many_gpus_steps_have_and_what_that_takes(tmp_path: Path) -> None:
    one = planned(tmp_path, techniques=FULL)
    four = planned(tmp_path, techniques=FULL, training={"gpus": 4, "teacher_gpus": 2})
    for asset in ("final_kd", "final_p"):
        alone, shared = one.row(asset), four.row(asset)
        assert (alone.gpus, shared.gpus) == (1, 4)
        assert alone.memory is not None and shared.memory is not None
        # Masters, gradients and moments are 16 bytes a parameter, of which a quarter stays.
        assert shared.parameters is not None
        saved = 12 * shared.parameters
        assert 0.5 * saved < alone.memory - shared.memory < 1.2 * saved
    # Four at four fifths of their speed; loading and writing take what they took.
    assert one.row("final_kd").seconds / 4 < four.row("final_kd").seconds < one.row("final_kd").seconds / 2.5
    assert four.row("teacher_logits").gpus == 2
    assert four.row("final_q").gpus == 1
    text = as_text(four)
    assert "GPUs: 4 for final_kd, final_p" in text
    assert "; 2 for teacher_logits; 1 for every other step" in text
    assert "GPUs:" not in as_text(one)
    assert {row["asset"]: row["gpus"] for row in database_rows(four)}["final_kd"] == 4
    assert planned(tmp_path, "cpu", techniques=FULL, training={"gpus": 4}).row("final_kd").gpus == 1


def test_a_step_that_is_too_large_is_told_how_many_gpus_would_do(tmp_path: Path) -> None:
    plan = planned(tmp_path, "a6000", techniques=FULL)
    assert len(plan.misfits) >= 1
    assert all("(training.gpus: " in misfit for misfit in plan.misfits if "final_kd" in misfit)
    count = int(plan.misfits[0].partition("(training.gpus: ")[2].split()[0])
    enough = planned(tmp_path, "a6000", techniques=FULL, training={"gpus": count})
    assert enough.row("final_kd").memory is not None
    assert enough.row("final_kd").memory < 0.95 * 48 * GIB


def test_a_teacher_of_72_billion_parameters_is_told_its_gpus(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 8192,
        "intermediate_size": 29_568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    }
    large = {
        "techniques": FULL,
        "teacher": {"kind": "model", "source": {"kind": "random", **sizes}},
        "teacher_logits": {"load_in_8bit": False},
    }
    plan = planned(tmp_path, **large)
    (misfit,) = [one for one in plan.misfits if one.startswith("teacher_logits")]
    # 145 GB of weights.
    assert "(training.teacher_gpus: 2 takes" in misfit
    assert not planned(tmp_path, **large, training={"teacher_gpus": 2}).misfits
