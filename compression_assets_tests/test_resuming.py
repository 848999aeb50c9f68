"""A killed training run goes on where it stopped and ends in the same weights."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch

from compression_assets.store.reports import Report, no_report
from compression_assets.training import resuming
from compression_assets.training.finetuning import finetune, finetune_teacher
from compression_assets.training.resuming import run_identity
from compression_assets_tests.training_helpers import (
    Killed,
    checkpoints_in,
    recipe_of,
    save_model,
    tiny_dataset,
    tiny_model,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("float32")


def test_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    dataset, recipe = tiny_dataset(14), recipe_of(batch_size=2, warmup_steps=2)
    straight, resumed = tiny_model(), tiny_model()
    for model in (straight, resumed):
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.3
    expected = finetune(straight, dataset, recipe, 5)

    def kill(done: int, total: int, note: str) -> None:
        if done > total * 0.7:
            raise Killed

    with pytest.raises(Killed):
        finetune(copy.deepcopy(resumed), dataset, recipe, 5, "cpu", kill, checkpoints_in(tmp_path))
    other = finetune(
        copy.deepcopy(resumed), dataset, recipe, 5, checkpoints=checkpoints_in(tmp_path / "none")
    )
    assert not any("resumed" in note for note in other.notes)
    about = tmp_path / "step-000004" / "progress.json"
    saved = json.loads(about.read_text())
    assert saved["progress"]["earlier"] > 0
    saved["progress"]["earlier"] = 1000.0
    about.write_text(json.dumps(saved))
    found = finetune(resumed, dataset, recipe, 5, checkpoints=checkpoints_in(tmp_path))
    assert "resumed after step 4" in found.notes
    assert found.loss_curve == expected.loss_curve
    assert found.tokens_seen == expected.tokens_seen
    assert found.seconds > 1000
    for name, weight in weights_of(straight).items():
        assert torch.equal(weight, weights_of(resumed)[name])


def test_checkpoints_that_take_long_are_made_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(resuming.time, "monotonic", lambda: clock[0])

    def slow(tensors: object, file: Path) -> None:
        clock[0] += seconds
        file.touch()

    monkeypatch.setattr(resuming, "save_tensors", slow)
    kept = checkpoints_in(tmp_path)
    seconds = 1.0
    kept.save(2, {}, {})
    assert kept.due(4, 100)
    seconds = 30.0
    kept.save(4, {}, {})
    assert not kept.due(6, 100)
    clock[0] += 20 * 30.0
    assert kept.due(8, 100) and not kept.due(9, 100) and not kept.due(100, 100)


@pytest.mark.parametrize(("name", "kept"), [("progress.json", 0), ("state.safetensors", 2_000)])
def test_a_checkpoint_that_power_failure_cut_short_is_as_none(tmp_path: Path, name: str, kept: int) -> None:
    def kill(done: int, total: int, note: str) -> None:
        if done > total * 0.7:
            raise Killed

    recipe = recipe_of(batch_size=2)
    with pytest.raises(Killed):
        finetune(tiny_model(), tiny_dataset(14), recipe, 0, "cpu", kill, checkpoints_in(tmp_path))
    (saved,) = tmp_path.glob("step-*")
    os.truncate(saved / name, kept)
    done = finetune(tiny_model(), tiny_dataset(14), recipe, 0, checkpoints=checkpoints_in(tmp_path))
    assert not any("resumed" in note for note in done.notes)


def test_checkpoint_of_another_run_is_left_alone(tmp_path: Path) -> None:
    finetune(tiny_model(), tiny_dataset(12), recipe_of(), 0, checkpoints=checkpoints_in(tmp_path, "one"))
    again = finetune(
        tiny_model(), tiny_dataset(12), recipe_of(), 0, checkpoints=checkpoints_in(tmp_path, "two")
    )
    assert again.notes == []


def test_every_input_of_a_run_is_in_its_identity() -> None:
    plain = {
        "model": tiny_model(),
        "dataset": tiny_dataset(8),
        "recipe": recipe_of(),
        "seed": 0,
        "device": "cpu",
    }
    changes = {
        "model": tiny_model(seed=1),
        "dataset": tiny_dataset(8, seed=1),
        "recipe": recipe_of(epochs=7),
        "seed": 1,
        "device": "cuda:0",
        "teacher": {"teacher": "t"},
    }
    found = [run_identity(**(plain | {name: value})) for name, value in changes.items()]
    assert run_identity(**plain) == run_identity(**(plain | {"model": tiny_model()}))
    assert len({run_identity(**plain), *found}) == len(found) + 1


def test_a_killed_teacher_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "CHECKPOINT_EVERY", 2)
    parent = save_model(tiny_model(), tmp_path / "parent")
    tiny_dataset(14).save(tmp_path / "data")
    reports: list[int] = []

    def kill(done: int, total: int, note: str) -> None:
        reports.append(done)
        if len(reports) == 3:
            raise Killed

    def teacher(output: str, report: Report = no_report, scratch: Path | None = None) -> list[str]:
        arguments = (
            parent,
            tmp_path / output,
            tmp_path / "data",
            recipe_of(epochs=3),
            0,
            "cpu",
            report,
            scratch,
        )
        return finetune_teacher(*arguments).metadata["training_notes"]

    teacher("undisturbed")
    with pytest.raises(Killed):
        teacher("killed", kill, tmp_path / "scratch")
    assert "resumed after step 2" in teacher("resumed", scratch=tmp_path / "scratch")
    undisturbed, resumed = (tmp_path / name / "model.safetensors" for name in ("undisturbed", "resumed"))
    assert undisturbed.read_bytes() == resumed.read_bytes()
