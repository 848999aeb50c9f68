"""Judges that are read instead of asked: their formulas, what they depend on, and how far judges agree."""

import asyncio
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression_assets.errors import StudyError
from compression_assets.evaluation.embedding import WordCounts, embedder
from compression_assets.evaluation.judging import embedding_judge, likelihood
from compression_assets.evaluation.judging.agreement import (
    against_people,
    agreement,
    agreements,
    read_people,
    write_others,
)
from compression_assets.evaluation.judging.asking import Asker
from compression_assets.evaluation.judging.cache import AnswerCache
from compression_assets.evaluation.judging.calibration import (
    ALL,
    KINDS,
    PAIRS,
    calibrate,
    planted_cases,
)
from compression_assets.evaluation.judging.prompts import CORRECTNESS, METRICS, RELEVANCE, Case
from compression_assets.evaluation.judging.replies import JudgeError
from compression_assets.evaluation.judging.scoring import Outcome, judge_cases
from compression_assets.evaluation.judging.settings import PatienceSettings
from compression_assets.evaluation.measured import write_measured
from compression_assets.evaluation.rows import Sample
from compression_assets.sources.models import RandomModel
from compression_assets.sources.random_model import write

CASE = Case(
    "q:right", "Who mends the net?", "Old Ada mends the net on Sunday.", ("Ada", "old Ada"), "It is Ada."
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("judge") / "base"
    source = RandomModel(
        kind="random", seed=3, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    write(source, directory, "bfloat16")
    return directory


def reader(base: Path, folder: Path) -> Asker:
    backend = likelihood.LikelihoodBackend(base, "weights", "cpu", "tiny")
    return Asker(backend, AnswerCache(folder), PatienceSettings())


def test_scores_are_the_shares_of_surprise_removed(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def nats(before: str, text: str) -> float:
        known = [first, *tokenizer(before, add_special_tokens=False).input_ids]
        new = tokenizer(" " + text, add_special_tokens=False).input_ids
        labels = torch.tensor([[-100] * len(known) + new])
        with torch.no_grad():
            return float(model(torch.tensor([known + new]), labels=labels).loss) * len(new)

    def removed(text: str, known: str, unknown: str) -> float:
        return min(1, max(0, 1 - nats(known, text) / nats(unknown, text)))

    asked = f"Question: {CASE.question}\nAnswer:"
    correct = max(
        (
            removed(expected, f"It is Ada.\n{asked}", asked)
            + removed(CASE.answer, f"{asked} {expected}.\nThe same in other words:", asked)
        )
        / 2
        for expected in CASE.expected
    )
    relevant = math.sqrt(
        removed(CASE.question, "Answer: It is Ada.\nQuestion:", "Question:")
        * max(likelihood.GROUND, removed(CASE.answer, f"{CASE.context}\n{asked}", asked))
    )
    found = [
        asyncio.run(likelihood.score(metric, CASE, reader(base, tmp_path), 6000))
        for metric in (CORRECTNESS, RELEVANCE)
    ]
    # The judge computes in the processor's format, bfloat16 on most: within its rounding of a hundred nats.
    assert found == pytest.approx([correct, relevant], abs=0.02)
    assert 0 < found[0] < 1 or correct in (0, 1)


def test_an_interrupted_judging_goes_on_and_asks_nothing_twice(base: Path, tmp_path: Path) -> None:
    first = reader(base, tmp_path)
    before = judge_cases([CASE], first, 6000, "judged")
    again = reader(base, tmp_path)
    assert judge_cases([CASE], again, 6000, "judged") == before
    assert first.asked > 0
    assert again.asked == 0
    assert [outcome.metric for outcome in before] == list(METRICS)


def test_a_text_that_the_model_cannot_read_is_said(base: Path, tmp_path: Path) -> None:
    long = Case("q:long", CASE.question, "word " * 5000, ("Ada",), "It is Ada.")
    with pytest.raises(JudgeError, match="more than the"):
        asyncio.run(likelihood.score(RELEVANCE, long, reader(base, tmp_path), 10**6))


def test_cosines_are_those_of_the_texts(tmp_path: Path) -> None:
    backend = embedding_judge.EmbeddingBackend(WordCounts(kind="words"), tmp_path, "words")
    asker = Asker(backend, AnswerCache(tmp_path / "cache"), PatienceSettings())
    embed = embedder(WordCounts(kind="words"), tmp_path)

    def cosine(one: str, other: str) -> float:
        first, second = (embed([text])[0].astype(float) for text in (one, other))
        return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))

    expected = max(
        (cosine(text, CASE.answer) + cosine(f"{CASE.question} {text}", CASE.answer)) / 2
        for text in CASE.expected
    )
    found = asyncio.run(embedding_judge.score(CORRECTNESS, CASE, asker, 6000))
    assert found == pytest.approx(expected, abs=1e-6)
    assert asyncio.run(embedding_judge.score(RELEVANCE, CASE, asker, 6000)) == pytest.approx(
        cosine(CASE.question, CASE.answer), abs=1e-6
    )


def test_halves_of_the_planted_questions_share_nothing() -> None:
    design, test = (
        {case.id.rpartition(":")[0] for case in planted_cases(30, half)} for half in ("design", "test")
    )
    assert len(design) == len(test) == 30
    assert not design & test
    kinds = {case.id.rpartition(":")[2] for case in planted_cases(1)}
    assert kinds == {
        name for pairs in PAIRS.values() for kind in pairs.values() for pair in kind for name in pair
    }


def outcomes(worth) -> list[Outcome]:  # type: ignore[no-untyped-def]
    cases = planted_cases(6)
    return [
        Outcome(metric, case.id, worth(case.id.rpartition(":")[2])) for metric in METRICS for case in cases
    ]


def test_a_judge_that_falls_for_copies_is_trusted_unless_the_study_demands_that_kind() -> None:
    def worth(kind: str) -> float:
        good = {"right": 0.8, "same": 0.8, "long": 0.8, "wrong": 0.4, "copying": 1.0}
        return good.get(kind, 0.1)

    cases = planted_cases(6)
    lenient = calibrate("j", cases, outcomes(worth), 0.6, 0)
    assert lenient.of("relevance").trusted
    assert lenient.of("relevance", "copying").accuracy == 0
    assert lenient.weakness("relevance") == "weak on copying (0 of 6)"
    assert lenient.doubt("relevance") == ""
    strict = calibrate("j", cases, outcomes(worth), 0.6, 0, ("copying",))
    assert strict.doubt("relevance") == "UNTRUSTED: j fails the demanded kind copying"
    assert strict.doubt("prompt_alignment") == ""  # alignment is not tried on copies
    assert {score.kind for score in lenient.scores} == {ALL, *KINDS}


def test_rank_correlation_is_scipys_and_pairs_are_counted_within_an_item() -> None:
    draw = random.Random(5)
    keys = [(f"m{model}", f"q{item}") for model in range(6) for item in range(9)]
    judge = {key: draw.random() for key in keys}
    people = {key: round(judge[key] + draw.gauss(0, 0.4), 1) for key in keys}
    missing = keys[3]
    del people[missing]
    found = agreement(judge, people, seed=0)
    shared = [key for key in keys if key != missing]
    expected = stats.spearmanr([judge[key] for key in shared], [people[key] for key in shared]).statistic
    assert found.n == len(shared)
    assert found.rho == pytest.approx(expected)
    assert found.lo is not None and found.hi is not None and found.lo < expected < found.hi
    brute = [
        (judge[a] > judge[b]) == (people[a] > people[b])
        for a in shared
        for b in shared
        if a < b and a[1] == b[1] and people[a] != people[b]
    ]
    assert (found.pairs, found.right) == (len(brute), sum(brute))


def test_scores_that_are_all_the_same_have_no_correlation() -> None:
    keys = [("m", str(item)) for item in range(5)]
    found = agreement(dict.fromkeys(keys, 0.5), {key: float(place) for place, key in enumerate(keys)}, 0)
    assert (found.rho, found.lo, found.pairs, found.accuracy) == (None, None, 0, None)


def test_scores_of_people_are_read_and_a_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text("item,model,score\nq1,base,4\nq1,base,5\nq2,p_kd_q,1\n")
    assert read_people(file) == {("base", "q1"): 4.5, ("p_kd_q", "q2"): 1.0}
    file.write_text("\ufeffitem,model,score\nq1,base,4\n", encoding="utf-8")  # as spreadsheets do
    assert read_people(file) == {("base", "q1"): 4.0}
    file.write_text("item,model,score\nq1,base,nan\n")
    with pytest.raises(StudyError, match="line 2: the score 'nan' is no number"):
        read_people(file)
    file.write_text("item,score\nq1,4\n")
    with pytest.raises(StudyError, match="no column 'model'"):
        read_people(file)


def test_what_is_cached_says_how_it_was_asked(base: Path, tmp_path: Path) -> None:
    judge_cases([CASE], reader(base, tmp_path), 6000, "judged")
    stored = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert {one["judge"]["kind"] for one in stored} == {"likelihood"}
    assert all(set(json.loads(one["prompt"])) == {"before", "text"} for one in stored)


def test_agreement_of_judges_and_of_people_over_judged_artifacts(tmp_path: Path) -> None:
    draw = random.Random(2)
    judged, first, second = {}, {}, {}
    for model in ("base", "kd"):
        samples = [Sample("correctness", f"q{item}", draw.random()) for item in range(6)]
        others = [
            {"judge": "words", "metric": "correctness", "item": sample.item, "value": draw.random()}
            for sample in samples
        ]
        folder = tmp_path / model
        folder.mkdir()
        write_measured(folder, [], samples)
        write_others(others, folder)
        judged[model] = folder
        first |= {(model, sample.item): sample.value for sample in samples}
        second |= {(model, row["item"]): row["value"] for row in others}
    (row,) = agreements(judged, seed=0)
    keys = sorted(first)
    expected = stats.spearmanr([first[key] for key in keys], [second[key] for key in keys]).statistic
    assert (row["metric"], row["other"], row["n"]) == ("correctness", "words", 12)
    assert row["rho"] == pytest.approx(expected)
    rows = against_people(judged, {key: value for key, value in second.items() if key[0] == "kd"}, 0, "tiny")
    by_judge = {row["judge"]: row for row in rows}
    assert by_judge["words"]["rho"] == pytest.approx(1.0) and by_judge["words"]["n"] == 6
    assert by_judge["tiny"]["rho"] < 1
