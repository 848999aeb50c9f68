"""Distillation from a store: equal to the live teacher, and as a technique on model directories."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from compression_assets.errors import StudyError
from compression_assets.techniques.distillation import Distillation
from compression_assets.techniques.distillation.apply import distill
from compression_assets.techniques.distillation.recipe import DistillationRecipe
from compression_assets.techniques.step import StepInputs
from compression_assets.training import resuming
from compression_assets.training.teacher import teacher_forward
from compression_assets.training.teacher.teacher_forward import LiveTeacher
from compression_assets.training.teacher.teacher_logits import (
    TeacherLogits,
    TeacherLogitsRecipe,
    write_teacher_logits,
)
from compression_assets_tests.training_helpers import VOCABULARY, save_model, tiny_dataset, tiny_model

pytestmark = pytest.mark.usefixtures("float32")


def _recipe(**changes: Any) -> DistillationRecipe:
    plain = {
        "epochs": 2,
        "learning_rate": 5e-3,
        "warmup_steps": 0,
        "batch_size": 3,
        "gradient_accumulation": 2,
    }
    return DistillationRecipe(**(plain | changes))


def _store(root: Path, vocabulary: int = VOCABULARY, **recipe: Any) -> TeacherLogits:
    teacher = save_model(tiny_model("qwen2", seed=4, vocabulary=vocabulary), root / "teacher")
    dataset = tiny_dataset(11)
    dataset.save(root / "data")
    settings = TeacherLogitsRecipe(**({"coding": "dense", "rows_per_shard": 4} | recipe))
    write_teacher_logits(
        teacher,
        root / "data",
        root / "logits",
        settings,
        temperature=2.0,
        teacher_fingerprint="t",
        vocabulary=VOCABULARY,
    )
    return TeacherLogits.open(root / "logits", dataset)


def _live(root: Path) -> LiveTeacher:
    model, _ = teacher_forward.load_teacher(root / "teacher", TeacherLogitsRecipe(), "cpu")
    return LiveTeacher(model, tiny_dataset(11))


@pytest.mark.parametrize("vocabulary", [VOCABULARY, VOCABULARY + 8, VOCABULARY - 4])
def test_dense_store_equals_live_teacher(tmp_path: Path, vocabulary: int) -> None:
    """To the rounding of stored logits to bfloat16, with the teacher's vocabulary equal, larger and smaller."""
    store, dataset = _store(tmp_path, vocabulary), tiny_dataset(11)
    stored, live = (
        distill(tiny_model("qwen2"), dataset, teacher, _recipe(), 0) for teacher in (store, _live(tmp_path))
    )
    for one, other in zip(stored.loss_curve, live.loss_curve, strict=True):
        assert one["kl"] == pytest.approx(other["kl"], rel=5e-3)
        assert one["ce"] == pytest.approx(other["ce"], rel=5e-3)


def test_first_loss_is_the_formula(tmp_path: Path) -> None:
    store, dataset, student = _store(tmp_path), tiny_dataset(11), tiny_model("qwen2")
    teacher = _live(tmp_path).model
    ce = kl = torch.zeros(())
    for row in dataset:
        ids, mask = torch.tensor([row.input_ids]), torch.tensor(row.trained[1:])
        with torch.no_grad():
            ours, theirs = (model(input_ids=ids).logits[0, :-1][mask] for model in (student, teacher))
        ce = ce - torch.log_softmax(ours, 1).gather(1, ids[0, 1:][mask][:, None]).sum()
        p, q = torch.softmax(theirs / 2, 1), torch.softmax(ours / 2, 1)
        kl = kl + (p * (p / q).log()).sum()
    first = distill(student, dataset, store, _recipe(batch_size=11, alpha=0.4), 0).loss_curve[0]
    tokens = dataset.n_trained
    assert first["ce"] == pytest.approx(float(ce) / tokens, rel=1e-4)
    assert first["kl"] == pytest.approx(float(kl) / tokens, rel=5e-3)
    assert first["loss"] == pytest.approx(0.6 * first["ce"] + 0.4 * 4 * first["kl"], rel=1e-5)


def test_top_k_divergence_is_a_lower_bound(tmp_path: Path) -> None:
    dataset = tiny_dataset(11)
    kl = [
        distill(tiny_model("qwen2"), dataset, _store(tmp_path / name, **coding), _recipe(), 0).loss_curve[0][
            "kl"
        ]
        for name, coding in {
            "few": {"coding": "top_k", "k": 4},
            "many": {"coding": "top_k", "k": 32},
            "all": {"coding": "top_k", "k": VOCABULARY},
            "dense": {},
        }.items()
    ]
    assert kl[0] < kl[1] < kl[2] == pytest.approx(kl[3], rel=1e-2)


def test_student_comes_closer_to_the_teacher(tmp_path: Path) -> None:
    for name, coding in {"top_k": {"coding": "top_k", "k": 16}, "hidden": {"coding": "hidden"}}.items():
        store = _store(tmp_path / name, **coding)
        done = distill(tiny_model("qwen2"), tiny_dataset(11), store, _recipe(alpha=1.0, epochs=12), 0)
        assert done.loss_curve[-1]["kl"] < 0.8 * done.loss_curve[0]["kl"]


def test_alpha_zero_reads_no_teacher() -> None:
    class Silent:
        def batch(self, *_: Any) -> Any:
            raise AssertionError

    done = distill(tiny_model(), tiny_dataset(6), Silent(), _recipe(alpha=0.0), 0)
    assert done.loss_curve[0]["loss"] == pytest.approx(done.loss_curve[0]["ce"])


def test_store_for_another_temperature_is_refused(tmp_path: Path) -> None:
    store = _store(tmp_path, coding="top_k", k=4)
    with pytest.raises(StudyError, match=r"cannot serve 1\.0"):
        distill(tiny_model("qwen2"), tiny_dataset(11), store, _recipe(temperature=1.0), 0)


def test_technique_writes_a_model_with_masters(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _store(tmp_path, coding="top_k", k=8)
    parent = save_model(tiny_model("qwen2"), tmp_path / "parent")
    (tmp_path / "output").mkdir()
    data = {"distillation_set": tmp_path / "data", "teacher_logits": tmp_path / "logits"}
    report = Distillation.apply(StepInputs(parent, tmp_path / "output", _recipe(), data, seed=0))
    assert [check.passed for check in report.checks] == [True, True]
    assert report.tokens_seen == 2 * tiny_dataset(11).n_trained
    assert report.metadata["teacher"] == "t"
    assert report.metadata["teacher_coding"] == "top_k"
    assert {"loss", "ce", "kl"} <= report.metadata["loss_curve"][0].keys()
    published = AutoModelForCausalLM.from_pretrained(tmp_path / "output", dtype="auto")
    assert published.dtype == torch.bfloat16
    assert (tmp_path / "output" / "masters").is_dir()


class Killed(Exception):
    pass


def test_a_killed_step_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "CHECKPOINT_EVERY", 2)
    _store(tmp_path, coding="top_k", k=8)
    parents = [save_model(tiny_model("qwen2", seed=seed), tmp_path / f"parent{seed}") for seed in (0, 1)]
    data = {"distillation_set": tmp_path / "data", "teacher_logits": tmp_path / "logits"}
    reports = 0

    def kill(done: int, total: int, note: str) -> None:
        nonlocal reports
        reports += 1
        if reports == 3:
            raise Killed

    def apply(output: str, parent: Path = parents[0], **changes: Any) -> list[str]:
        inputs = {"recipe": _recipe(), "data": data, "seed": 0, "scratch": tmp_path / "scratch"}
        step = StepInputs(parent, tmp_path / output, **(inputs | changes))
        return Distillation.apply(step).metadata["training_notes"]

    assert apply("undisturbed", scratch=None) == []
    with pytest.raises(Killed):
        apply("killed", report=kill)
    for name, change in {
        "seed": {"seed": 1},
        "recipe": {"recipe": _recipe(alpha=0.5)},
        "parent": {"parent": parents[1]},
    }.items():
        kept = tmp_path / f"scratch-{name}"
        shutil.copytree(tmp_path / "scratch", kept)
        assert apply(name, scratch=kept, **change) == []
    assert apply("resumed") == ["resumed after step 2"]
    for file in ("model.safetensors", "masters/model.safetensors"):
        undisturbed, resumed = (tmp_path / name / file for name in ("undisturbed", "resumed"))
        assert undisturbed.read_bytes() == resumed.read_bytes()
