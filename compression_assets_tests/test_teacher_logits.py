"""The store of teacher logits: order, resuming, refusals, and equality with the live teacher."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2ForCausalLM

from compression_assets.errors import StudyError
from compression_assets.store.reports import Report, no_report
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets.training.head_loss import DenseTargets, SparseTargets
from compression_assets.training.teacher import teacher_forward
from compression_assets.training.teacher.teacher_logits import (
    TeacherLogits,
    TeacherLogitsRecipe,
    check_same_tokenizer,
    write_teacher_logits,
)
from compression_assets_tests.training_helpers import (
    VOCABULARY,
    save_model,
    save_tokenizer,
    tiny_dataset,
    tiny_model,
)

pytestmark = pytest.mark.usefixtures("float32")


class Bench:
    """A teacher and a dataset on disk."""

    def __init__(self, root: Path, vocabulary: int = VOCABULARY) -> None:
        self.root = root
        self.teacher = save_model(tiny_model("qwen2", seed=4, vocabulary=vocabulary), root / "teacher")
        self.model = Qwen2ForCausalLM.from_pretrained(self.teacher, dtype=torch.float32)
        self.dataset = tiny_dataset(11)
        self.dataset.save(root / "data")
        self.output = root / "logits"
        self.scratch: Path | None = None
        self.report: Report = no_report

    def write(
        self, temperature: float = 2.0, teacher: str = "t", vocabulary: int | None = None, **recipe: Any
    ) -> dict:
        settings = TeacherLogitsRecipe(**({"coding": "dense", "rows_per_shard": 4, "batch_size": 3} | recipe))
        return write_teacher_logits(
            self.teacher,
            self.root / "data",
            self.output,
            settings,
            temperature=temperature,
            teacher_fingerprint=teacher,
            vocabulary=vocabulary,
            report=self.report,
            scratch=self.scratch,
        )

    def open(self) -> TeacherLogits:
        return TeacherLogits.open(self.output, self.dataset)

    def logits(self, rows: list[int]) -> torch.Tensor:
        """What the teacher says, a row at a time, at the positions before a content token."""
        parts = []
        for index in rows:
            row = self.dataset[index]
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
            parts.append(logits[torch.tensor(row.trained[1:])])
        return torch.cat(parts)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


ROWS = [7, 0, 10, 3]


def test_dense_store_is_the_live_teacher_in_row_order(bench: Bench) -> None:
    manifest = bench.write()
    assert manifest["shards"] == 3
    assert manifest["tokens"] == bench.dataset.n_trained
    assert manifest["vocabulary"] == VOCABULARY
    targets = bench.open().batch(ROWS, 3.5, VOCABULARY)
    assert isinstance(targets, DenseTargets)
    found, expected = targets.read(0, 10_000), bench.logits(ROWS)
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-5)


def test_hidden_store_makes_the_same_logits_again(bench: Bench) -> None:
    """For any temperature, from what is rounded to bfloat16 before the output layer instead of after it."""
    manifest = bench.write(coding="hidden")
    assert manifest["temperature"] is None
    store = bench.open()
    store.require(1.0, VOCABULARY)
    targets = store.batch(ROWS, 1.0, VOCABULARY)
    assert isinstance(targets, DenseTargets)
    found, expected = targets.read(2, 9), bench.logits(ROWS)[2:9]
    assert torch.nn.functional.cosine_similarity(found.float(), expected).min() > 0.9999
    (bench.output / "head.safetensors").unlink()
    with pytest.raises(StudyError, match="lack head"):
        bench.open()


def test_top_k_store_lists_the_live_teacher_s_largest(bench: Bench) -> None:
    bench.write(coding="top_k", k=8)
    targets = bench.open().batch(ROWS, 2.0, VOCABULARY)
    assert isinstance(targets, SparseTargets)
    p = torch.softmax(bench.logits(ROWS) / 2, 1)
    torch.testing.assert_close(targets.weights, p.gather(1, targets.ids), rtol=0.03, atol=1e-5)
    torch.testing.assert_close(targets.rest, 1 - p.topk(8, 1).values.sum(1), rtol=5e-3, atol=1e-4)


def test_larger_teacher_vocabulary_is_cut_before_normalising(tmp_path: Path) -> None:
    bench = Bench(tmp_path, vocabulary=VOCABULARY + 8)
    assert bench.write(coding="top_k", k=8, vocabulary=VOCABULARY)["vocabulary"] == VOCABULARY
    targets = bench.open().batch(ROWS, 2.0, VOCABULARY)
    p = torch.softmax(bench.logits(ROWS)[:, :VOCABULARY] / 2, 1)
    assert isinstance(targets, SparseTargets)
    torch.testing.assert_close(targets.weights, p.gather(1, targets.ids), rtol=0.03, atol=1e-5)
    bench.write(coding="top_k", k=8)
    with pytest.raises(StudyError, match="more than the student's 64"):
        bench.open().require(2.0, VOCABULARY)


def test_other_temperature_is_refused_except_for_dense(bench: Bench) -> None:
    bench.write(coding="top_k", k=8)
    with pytest.raises(StudyError, match=r"for temperature 2.0 and cannot serve 1.0"):
        bench.open().batch([0], 1.0, VOCABULARY)
    bench.write()
    bench.open().require(1.0, VOCABULARY)


OTHER_DATA: dict[str, Callable[[list[TokenRow]], list[TokenRow]]] = {
    "a row less": lambda rows: rows[:-1],
    "another order": lambda rows: rows[::-1],
    "another tokenizer or template": lambda rows: [
        TokenRow(rows[0].id, [rows[0].input_ids[0] + 1, *rows[0].input_ids[1:]], rows[0].content),
        *rows[1:],
    ],
    "another mask": lambda rows: [
        TokenRow(rows[0].id, rows[0].input_ids, [not rows[0].content[0], *rows[0].content[1:]]),
        *rows[1:],
    ],
}


@pytest.mark.parametrize("change", OTHER_DATA)
def test_store_of_other_data_is_refused(bench: Bench, change: str) -> None:
    bench.write()
    other = TokenDataset(OTHER_DATA[change](list(bench.dataset.rows)))
    with pytest.raises(StudyError, match="made for other data"):
        TeacherLogits.open(bench.output, other)


def test_the_manifest_says_what_the_store_was_made_of(bench: Bench) -> None:
    first = bench.write(teacher="one")
    assert first["dataset"] == bench.dataset.digest()
    assert first["teacher"] == "one"
    (bench.teacher / "chat_template.jinja").write_text("{{ messages }}")
    second = bench.write(teacher="one")
    assert second["chat_template"] != first["chat_template"]
    assert second["tokenizer"] == first["tokenizer"]
    save_tokenizer(bench.teacher, {f"u{index}": index for index in range(VOCABULARY)} | {"t0": VOCABULARY})
    assert bench.write(teacher="one")["tokenizer"] != first["tokenizer"]


def test_unfinished_or_incomplete_store_is_refused(bench: Bench) -> None:
    with pytest.raises(StudyError, match="no finished teacher logits"):
        bench.open()
    bench.write()
    (bench.output / "shard-00001.safetensors").unlink()
    with pytest.raises(StudyError, match="lack shard-00001"):
        bench.open()


class Killed(Exception):
    pass


def _contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("coding", ["hidden", "top_k"])
def test_the_same_logits_are_the_same_files(bench: Bench, coding: str) -> None:
    metadata = bench.write(coding=coding)
    assert metadata["seconds"] > 0
    assert 0 < metadata["padding"] < 1
    manifest = json.loads((bench.output / "logits.json").read_text())
    assert manifest == {name: value for name, value in metadata.items() if name not in ("seconds", "padding")}
    first = _contents(bench.output)
    bench.output, bench.scratch = bench.root / "again", bench.root / "scratch"
    bench.write(coding=coding)
    assert _contents(bench.output) == first


def test_interrupted_run_keeps_whole_shards(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    top_k = {"coding": "top_k", "k": 4}
    bench.write(**top_k)
    expected = _contents(bench.output)
    made: list[range] = []
    shard = teacher_forward._shard

    def counted(live: Any, rows: range, *rest: Any) -> Any:
        made.append(rows)
        return shard(live, rows, *rest)

    def kill(done: int, total: int, note: str) -> None:
        if note == "shard 2 of 3":
            raise Killed

    monkeypatch.setattr(teacher_forward, "_shard", counted)
    bench.scratch = bench.root / "scratch"

    def killed(output: str) -> None:
        bench.output, bench.report = bench.root / output, kill
        with pytest.raises(Killed):
            bench.write(**top_k)
        bench.report = no_report
        made.clear()

    killed("resumed")
    bench.write(**top_k)
    assert made == [range(8, 11)]
    assert _contents(bench.output) == expected
    killed("other")
    bench.write(**top_k, teacher="another")
    assert made == [range(4), range(4, 8), range(8, 11)]


def test_eight_bit_on_a_cpu_is_noted(bench: Bench) -> None:
    assert "needs CUDA" in bench.write(load_in_8bit=True)["notes"][0]


def test_tokenizers_may_differ_in_padding_only(tmp_path: Path) -> None:
    words = {f"t{index}": index for index in range(8)}
    student = save_tokenizer(tmp_path / "student", words)
    longer = save_tokenizer(tmp_path / "longer", words | {"<pad>": 8})
    check_same_tokenizer(longer, student)
    swapped = save_tokenizer(tmp_path / "swapped", words | {"t3": 4, "t4": 3})
    with pytest.raises(
        StudyError, match=r"2 ids differ; id 3 is 't4' for the teacher and 't3' for the student"
    ):
        check_same_tokenizer(swapped, student)
