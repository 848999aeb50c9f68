"""Perplexity of running text: which tokens each window predicts, and the figures against plain formulas."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from compression_assets.errors import StudyError
from compression_assets.evaluation.text_perplexity import measure_text, score_windows, to_rows
from compression_assets.evaluation.text_windows import TextSettings, Window, rolling, sliding, windows_of
from compression_assets.sources.local import local_files
from compression_assets.sources.random_model import byte_tokenizer
from compression_assets.sources.texts import JsonlTexts, TextFile, read_texts
from compression_assets.study.files import load_study
from compression_assets_tests.project import Project
from compression_assets_tests.tiny_models import tiny_directory, tiny_model

TEXTS = [
    " Zwölf  Boxkämpfer\njagen Viktor – quer über den Sylter Deich.\n\n",
    "One.",
    "",
    "a\tb c  d e f g h",
]
LENGTHS = [(8, 8), (8, 3), (64, 64), (5, 1)]


def settings(**changes: Any) -> TextSettings:
    return TextSettings(source=TextFile(kind="text", path="unused"), **changes)


def both(windows: list[Window], nll: list[float], asked: TextSettings) -> dict[str, float]:
    rows, samples = to_rows(windows, nll, asked)
    for row in rows:
        own = [sample for sample in samples if sample.metric == row.metric]
        mean = sum(sample.value or 0 for sample in own) / sum(sample.weight for sample in own)
        assert row.value == pytest.approx(math.exp(mean) if row.aggregate == "exp_mean" else mean)
    return {row.metric: row.value or 0 for row in rows}


def test_the_windows_of_the_harness_worked_out_by_hand() -> None:
    # Ten tokens after the prefix. The last window reads as much as the others, and predicts what is left.
    assert list(rolling(11, max_length=4, stride=4)) == [(0, 1, 5), (4, 5, 9), (6, 9, 11)]
    assert list(rolling(11, max_length=4, stride=3)) == [(0, 1, 5), (3, 5, 8), (6, 8, 11)]
    assert list(rolling(4, max_length=4, stride=4)) == [(0, 1, 4)]
    assert list(rolling(1, max_length=4, stride=4)) == []


def test_the_windows_of_the_guide_worked_out_by_hand() -> None:
    assert list(sliding(10, max_length=4, stride=4)) == [(0, 1, 4), (4, 5, 8), (8, 9, 10)]
    assert list(sliding(10, max_length=4, stride=2)) == [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    assert list(sliding(9, max_length=4, stride=4)) == [(0, 1, 4), (4, 5, 8)]


@pytest.mark.parametrize("way", [rolling, sliding])
def test_no_token_is_predicted_twice_and_no_window_is_too_long(way: Any) -> None:
    draw = random.Random(4)
    for _ in range(200):
        ids, length = draw.randint(0, 70), draw.randint(2, 20)
        stride = draw.randint(1, length)
        spans = list(way(ids, length, stride))
        predicted = [place for _, first, end in spans for place in range(first, end)]
        assert predicted == sorted(set(predicted))
        assert all(begin < first and end - 1 - begin <= length for begin, first, end in spans)
        left_out = set(range(ids)) - set(predicted)
        starts = {0} if way is rolling or stride < length else set(range(0, ids, length))
        assert left_out == ({0} if ids else set()) | (starts if ids else set())


@pytest.mark.parametrize(("length", "stride"), LENGTHS)
def test_windows_share_out_words_and_bytes_as_the_harness_counts_them(length: int, stride: int) -> None:
    windows = windows_of(TEXTS, byte_tokenizer(), settings(max_length=length, stride=stride))
    for number, text in enumerate(TEXTS):
        own = [window for window in windows if window.item.startswith(f"document {number},")]
        assert sum(window.utf8_bytes for window in own) == len(text.encode())
        # A document without a token has no window, and no words either.
        assert sum(window.words for window in own) == (len(re.split(r"\s+", text)) if text else 0)
        assert sum(window.predicted for window in own) == len(text.encode())
    assert len({window.item for window in windows}) == len(windows)


def log_likelihood(model: PreTrainedModel, ids: list[int]) -> float:
    """Of the last id after those before it, in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0, -1]
    return float(logits.log_softmax(-1)[ids[-1]])


@pytest.mark.parametrize(("length", "stride"), LENGTHS)
def test_the_figures_of_the_harness_token_by_token(length: int, stride: int) -> None:
    model, tokenizer = tiny_model(seed=stride), byte_tokenizer()
    asked = settings(max_length=length, stride=stride)
    windows = windows_of(TEXTS, tokenizer, asked)
    found = both(windows, score_windows(model, windows), asked)
    double, total, tokens = model.double(), 0.0, 0
    for text in TEXTS:
        ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        # Of each window in turn: its end, and so where what it reads begins.
        end = 1
        while end < len(ids):
            first, end = end, min(end + (length if end == 1 else stride), len(ids))
            begin = max(0, end - 1 - length)
            total += sum(log_likelihood(double, ids[begin : place + 1]) for place in range(first, end))
        tokens += len(ids) - 1
    words = sum(len(re.split(r"\s+", text)) for text in TEXTS if text)
    assert found == {
        "text_perplexity": pytest.approx(math.exp(-total / tokens), rel=1e-5),
        "word_perplexity": pytest.approx(math.exp(-total / words), rel=1e-4),
        "bits_per_byte": pytest.approx(-total / math.log(2) / len("".join(TEXTS).encode()), rel=1e-5),
    }


@pytest.mark.parametrize(("length", "stride"), LENGTHS)
def test_the_figure_of_the_guide_by_the_models_own_loss(length: int, stride: int) -> None:
    model, tokenizer = tiny_model(seed=3), byte_tokenizer()
    asked = settings(windows="transformers", max_length=length, stride=stride)
    windows = windows_of(TEXTS, tokenizer, asked)
    found = both(windows, score_windows(model, windows), asked)
    ids, total, count, before = torch.tensor(tokenizer("\n\n".join(TEXTS))["input_ids"]), 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        labels = ids[begin:end].clone()
        labels[: before - begin if before else 0] = -100
        predicted = int((labels[1:] != -100).sum())
        if predicted:
            with torch.no_grad():
                total += predicted * float(model(ids[None, begin:end], labels=labels[None]).loss)
        count, before = count + predicted, end
        if end == len(ids):
            break
    assert found == {"text_perplexity": pytest.approx(math.exp(total / count), rel=1e-5)}


def test_a_limit_scores_the_first_windows_as_they_are(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "model")
    whole, all_samples = measure_text(directory, directory, TEXTS, settings(max_length=8))
    rows, samples = measure_text(directory, directory, TEXTS, settings(max_length=8, limit=3))
    assert [row.n for row in rows] == [24, 24, 24]
    assert whole[0].n == len("".join(TEXTS).encode())
    bits = [sample for sample in samples if sample.metric == "bits_per_byte"]
    assert bits == [sample for sample in all_samples if sample.metric == "bits_per_byte"][:3]
    assert rows[0].note == "windows of 8 tokens, stride 8, lm_eval, the first 3 windows"


def test_what_no_figure_can_be_made_of(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "model", max_position_embeddings=64)
    with pytest.raises(StudyError, match="model reads at most 64 tokens: write max_length: 64"):
        measure_text(directory, directory, TEXTS, settings(max_length=65))
    with pytest.raises(StudyError, match="no token to predict"):
        measure_text(directory, directory, ["a"], settings(windows="transformers", max_length=8))


def test_words_and_bytes_compare_where_tokens_do_not(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "model")
    other = tiny_directory(tmp_path / "other")
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    rows, samples = measure_text(other, directory, TEXTS, settings(max_length=64))
    found = {row.metric: row.value for row in rows}
    assert found["text_perplexity"] is None
    assert found["word_perplexity"] and found["bits_per_byte"]
    assert {sample.metric for sample in samples} == {"word_perplexity", "bits_per_byte"}


def test_texts_are_read_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\r\n ä \n".encode())
    source = TextFile(kind="text", path=str(file))
    assert read_texts(source, tmp_path) == ["\r\n ä \n"]
    assert local_files(source) == [file]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"page": "one"}\n{"page": ""}\n')
    assert read_texts(JsonlTexts(kind="jsonl", path=str(rows), column="page"), tmp_path) == ["one", ""]
    with pytest.raises(StudyError, match=r'rows.jsonl, line 1: expected an object with a text under "text"'):
        read_texts(JsonlTexts(kind="jsonl", path=str(rows)), tmp_path)
    file.write_bytes(b"ab\xff")
    with pytest.raises(StudyError, match="not UTF-8 text at byte 2"):
        read_texts(source, tmp_path)
    file.write_text(" \n")
    with pytest.raises(StudyError, match="has no text"):
        read_texts(source, tmp_path)


def test_a_study_measures_its_text(tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text("".join(TEXTS))
    text = {"source": {"kind": "text", "path": "wiki.txt"}, "max_length": 16}
    project = Project(tmp_path, evaluation={"text": text})
    code, output = project.compression("run", "--select", "*text_base")
    assert code == 0, output
    found = project.query("SELECT metric, lo < value AND value < hi, part FROM metrics.base ORDER BY metric")
    names = ("bits_per_byte", "text_perplexity", "word_perplexity")
    assert found == [(name, True, "text") for name in names]
    (tmp_path / "wiki.txt").unlink()
    with pytest.raises(StudyError, match=r"evaluation.text.source: the text file .*wiki.txt does not exist"):
        load_study(project.study_file)
    (tmp_path / "wiki.txt").write_text("x")
    project.write(project.read() | {"evaluation": {"text": text | {"stride": 17}}})
    with pytest.raises(StudyError, match=r"stride must be at most max_length \(16\)"):
        load_study(project.study_file)
