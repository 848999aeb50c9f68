"""What lm-evaluation-harness returns as rows; that a study which names tasks without it says what to install."""

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from compression_assets.errors import StudyError
from compression_assets.evaluation.harness import HarnessSettings, made_of, run_tasks, to_rows
from compression_assets.evaluation.text_perplexity import measure_text
from compression_assets.evaluation.text_windows import TextSettings, rolling
from compression_assets.machine import precision
from compression_assets.sources.texts import JsonlTexts
from compression_assets_tests.tiny_models import tiny_directory

HARNESS = importlib.util.find_spec("lm_eval") is not None

TASK = """
task: two_colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [red, blue]
doc_to_target: right
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""

RUNNING_TEXT = """
task: pages
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""

needs_harness = pytest.mark.skipif(not HARNESS, reason="needs lm_eval (dependency group harness)")


def found(**changes: Any) -> dict[str, Any]:
    documents = [{"doc_id": index, "filter": "none", "acc": float(index % 2)} for index in range(4)]
    return {
        "results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.1}},
        "higher_is_better": {"arc_easy": {"acc": True}},
        "samples": {"arc_easy": documents},
        **changes,
    }


def test_a_mean_over_documents_has_its_samples() -> None:
    rows, samples = to_rows(found())
    (row,) = rows
    assert (row.metric, row.value, row.n, row.higher_is_better) == ("arc_easy_acc", 0.5, 4, True)
    assert [(sample.item, sample.value) for sample in samples] == [
        ("0", 0.0),
        ("1", 1.0),
        ("2", 0.0),
        ("3", 1.0),
    ]


def test_only_shares_have_a_unit_and_a_document_counts_once() -> None:
    twice = [{"doc_id": index, "filter": name} for index in range(3) for name in ("none", "strict-match")]
    rows, _ = to_rows(
        found(
            results={"wiki": {"word_perplexity,none": 25.3}, "both": {"acc,none": 0.6}},
            samples={"wiki": twice, "arc_easy": twice},
            group_subtasks={"both": ["wiki", "arc_easy"]},
        )
    )
    assert [(row.metric, row.unit, row.n) for row in rows] == [
        ("wiki_word_perplexity", "", 3),
        ("both_acc", "0..1", 6),
    ]


def test_a_changed_task_file_is_another_measurement(tmp_path: Path) -> None:
    settings = HarnessSettings(tasks=["two_colours"], include=str(tmp_path))
    (tmp_path / "task.yaml").write_text("task: two_colours")
    before = made_of(settings)
    (tmp_path / "task.yaml").write_text("task: two_colours # changed")
    assert made_of(settings) != before


def test_a_figure_that_is_no_mean_stands_alone() -> None:
    rows, samples = to_rows(found(results={"arc_easy": {"acc,none": 0.6, "f1,strict-match": 0.25}}))
    assert [(row.metric, row.value) for row in rows] == [
        ("arc_easy_acc", 0.6),
        ("arc_easy_f1_strict_match", 0.25),
    ]
    assert samples == []


@pytest.mark.skipif(HARNESS, reason="lm_eval is installed")
def test_without_the_harness_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"not installed .*pip install .*lm_eval"):
        run_tasks(tmp_path, HarnessSettings(tasks=["arc_easy"]), seed=0)


@needs_harness
def test_a_task_of_ones_own_runs_without_a_network(tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(f'{{"question": "Colour {n}?", "right": {n % 2}}}\n' for n in range(6)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "two_colours.yaml").write_text(TASK.format(data=data))
    settings = HarnessSettings(tasks=["two_colours"], include=str(tmp_path / "tasks"), limit=5)
    rows, samples = run_tasks(tiny_directory(tmp_path / "model"), settings, seed=0)
    assert [(row.metric, row.n) for row in rows] == [("two_colours_acc", 5)]
    assert rows[0].value == sum(sample.value or 0 for sample in samples) / 5
    with pytest.raises(StudyError, match="has no task 'two_colors'"):
        run_tasks(tmp_path / "model", HarnessSettings(tasks=["two_colors"]), seed=0)


@needs_harness
def test_windows_are_those_of_the_harness() -> None:
    from lm_eval.utils import get_rolling_token_windows

    draw = random.Random(8)
    for _ in range(300):
        length = draw.randint(2, 20)
        stride = draw.randint(1, length)
        ids = list(range(draw.randint(0, 90)))  # 0 is the prefix
        theirs = [
            ((read + predicted[-1:])[-length - 1 :], predicted)
            for read, predicted in get_rolling_token_windows(ids[1:], 0, length, length - stride + 1)
        ]
        ours = [(ids[begin:end], ids[first:end]) for begin, first, end in rolling(len(ids), length, stride)]
        assert ours == theirs


@needs_harness
def test_figures_of_running_text_are_those_of_the_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bfloat16 the two round otherwise: the harness has batches and another attention kernel.
    monkeypatch.setattr(precision, "compute_dtype", lambda device: torch.float32)
    pages = ["  Zwölf Boxkämpfer jagen\nViktor.", "One.", "a\tb c  d e f g h " * 9]
    data = tmp_path / "pages.jsonl"
    data.write_text("".join(json.dumps({"text": page}) + "\n" for page in pages))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pages.yaml").write_text(RUNNING_TEXT.format(data=data))
    model = tiny_directory(tmp_path / "model", max_position_embeddings=32)
    theirs, _ = run_tasks(model, HarnessSettings(tasks=["pages"], include=str(tmp_path / "tasks")), seed=0)
    settings = TextSettings(source=JsonlTexts(kind="jsonl", path=str(data)), max_length=32)
    ours, _ = measure_text(model, model, pages, settings)
    found = {row.metric.removeprefix("pages_"): row.value for row in theirs}
    for row in ours[1:]:
        assert row.value == pytest.approx(found[row.metric], rel=1e-5), row.metric
    assert ours[0].value == pytest.approx(found["byte_perplexity"], rel=1e-5)  # a token is a byte here
