"""Perplexity and SQuAD scores against torchmetrics on the same items, with a tiny model."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.crosscheck import compare_perplexity, compare_squad
from compression_assets.evaluation.answers import Answer, write_answers
from compression_assets.text.datasets import TokenDataset, TokenRow
from compression_assets_tests.tiny_models import tiny_directory

pytest.importorskip("torchmetrics", reason="torchmetrics is in the group dev")

WORDS = ("the", "a", "cat", "Cat.", "dog", "U.S.", "1,889", "of", "café", "an", "–")


def test_perplexity_is_that_of_torchmetrics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        TokenRow(str(n), rng.integers(0, 256, n).tolist(), [bool(flag) for flag in rng.integers(0, 2, n)])
        for n in (5, 40, 17, 90)
    ]
    compared = compare_perplexity(tiny_directory(tmp_path / "model"), TokenDataset(rows))
    for ours, theirs in compared.values():
        assert ours == pytest.approx(theirs, rel=0.005)


def test_squad_scores_are_those_of_torchmetrics(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def text(longest: int) -> str:
        # Never articles alone: two texts without words have F1 0 in the official script of v1, and 1 in torchmetrics.
        return " ".join([rng.choice(WORDS[2:8]), *rng.choice(WORDS, rng.integers(0, longest))])

    answers = [
        Answer(str(index), "?", "x", tuple(text(5) for _ in range(rng.integers(1, 4))), "?", text(7), 3, True)
        for index in range(200)
    ]
    write_answers(answers, tmp_path)
    compared = compare_squad(tmp_path)
    assert set(compared) == {"f1 (torchmetrics)", "exact_match (torchmetrics)"}
    for ours, theirs in compared.values():
        assert 1 < ours < 99
        assert ours == pytest.approx(theirs, abs=1e-3)
