"""Speed: the same work for every model, its median and spread, and what was timed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compression_assets.evaluation import speed as speed_module
from compression_assets.evaluation.speed import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    RUNS,
    Speed,
    fixed_prompt,
    measure_speed,
    write_speed,
)
from compression_assets.techniques.quantization.apply import quantize_checkpoint
from compression_assets.techniques.quantization.recipe import QuantizationRecipe
from compression_assets.weights.checkpoints import load_for_scoring
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.formats.layout import format_of
from compression_assets_tests.tiny_models import tiny_directory, tiny_model

RUN = Speed(100, 10, (0.5, 0.25, 1.0), (2.0, 1.0, 4.0), "cpu", "bfloat16 weights", "sdpa", 1)


def test_every_model_does_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock on which a read token takes 1 s and a written one 5 s, the runs after the first are known."""
    now = 0.0
    calls: list[tuple[int, set[int], int]] = []

    def work(model: Any, prompts: list[list[int]], stop: set[int], max_new_tokens: int) -> None:
        nonlocal now
        calls.append((len(prompts[0]), stop, max_new_tokens))
        now += len(prompts[0]) + 5 * (max_new_tokens - 1)

    monkeypatch.setattr(speed_module, "generate", work)
    found = measure_speed(tiny_model(), [[5, 6, 7]], BF16(), "cpu", clock=lambda: now)
    assert calls == [(PROMPT_TOKENS, set(), 1), (PROMPT_TOKENS, set(), 1 + NEW_TOKENS)] * (RUNS + 1)
    rows = {row.metric: row for row in found.rows()}
    assert rows["tokens_per_second"].value == pytest.approx(1 / 5)
    assert rows["prompt_tokens_per_second"].value == pytest.approx(1)
    assert rows["time_to_first_token"].value == PROMPT_TOKENS
    assert {row.n for row in rows.values()} == {RUNS}


def test_rows_are_medians_with_the_fastest_and_the_slowest_run() -> None:
    rows = {row.metric: (row.value, row.lo, row.hi) for row in RUN.rows()}
    assert rows == {
        "prompt_tokens_per_second": (200, 100, 400),
        "tokens_per_second": (5, 2.5, 10),
        "time_to_first_token": (0.5, 0.25, 1.0),
    }


def test_what_was_timed_stands_in_the_row(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "tiny")
    quantize_checkpoint(directory, tmp_path / "q", QuantizationRecipe(), "cpu")
    model = load_for_scoring(tmp_path / "q", "cpu", torch.bfloat16)
    found = measure_speed(model, [list(range(40))], format_of(tmp_path / "q"), "cpu")
    for row in found.rows():
        assert "nf4 weights, dequantized to bfloat16; attention grouped; cpu, 1 threads" in row.note
        assert row.lo is not None and row.value is not None and row.hi is not None
        assert 0 < row.lo <= row.value <= row.hi


def test_a_model_with_little_room_is_timed_on_a_shorter_prompt() -> None:
    assert fixed_prompt([[1, 2], [3]], tiny_model(max_position_embeddings=64)) == [1, 2, 3] * 15 + [1, 2]
    assert len(fixed_prompt([[1, 2]], tiny_model())) == PROMPT_TOKENS


def test_what_was_timed_is_written_beside_the_answers(tmp_path: Path) -> None:
    write_speed(RUN, tmp_path)
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["prompt_seconds"] == [0.5, 0.25, 1.0] and written["writing_seconds"] == [2.0, 1.0, 4.0]
    assert written["new_tokens"] == 10 and written["device"] == "cpu"
