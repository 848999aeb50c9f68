"""Judging through DeepEval against a real server on loopback: what is asked, what is kept, what failure becomes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.calibration import Calibration, calibrate, planted_cases
from compression_assets.evaluation.judging.http_errors import retry_after
from compression_assets.evaluation.judging.openai_replies import top_of_score
from compression_assets.evaluation.judging.prompts import METRICS, Case
from compression_assets.evaluation.judging.results import (
    cases_of,
    coverage_problem,
    empty_outcomes,
    to_rows,
    to_samples,
)
from compression_assets.evaluation.judging.scoring import Outcome, judge_cases
from compression_assets_tests import judge_server
from compression_assets_tests.judge_server import JudgeServer, always, completion, opinion
from compression_assets_tests.judging_helpers import CASES, HASTY, QUESTIONS, QUICK, asker, judged, values


def test_scores_are_weighted_by_token_probabilities_where_the_judge_gives_them(tmp_path: Path) -> None:
    def script(_: JudgeServer, prompt: str, request: dict[str, Any]) -> Any:
        assert request["temperature"] == 0 and request["response_format"]["type"] == "json_schema"
        return completion(opinion(prompt, 4), 4 if request.get("logprobs") else None)

    with JudgeServer(script) as server:
        outcomes = judged(asker(server, tmp_path))
        # nine tenths on 4 and one on 3 of a scale from 1 to 5
        assert values(outcomes, "correctness") == pytest.approx([(3.9 - 1) / 4] * 4, abs=1e-4)
        assert values(outcomes, "prompt_alignment") == [1.0] * 4
        plain = judged(asker(server, tmp_path / "plain", log_probs=False), CASES[:1])
        assert values(plain, "correctness") == [(4 - 1) / 4]


def test_the_judge_sees_question_context_expected_answer_and_answer(tmp_path: Path) -> None:
    case = Case("a", "WHO?", "CONTEXT " * 10, ("BOB", "BOBBY", "BOB"), "ANSWER" * 20)
    with JudgeServer(always(5)) as server:
        judge_cases([case], asker(server, tmp_path), 100, "judged_q")
        correctness, relevance, alignment = sorted(server.prompts, key=lambda prompt: "verdicts" in prompt)
        if "Expected Output:\n" not in correctness:
            correctness, relevance = relevance, correctness
    assert "WHO?" in correctness and "CONTEXT" in correctness and "BOB / BOBBY \n" in correctness
    assert "5: Right." in correctness and "integer between 1 and 5" in correctness
    assert "ANSWERANSWER" in correctness and "ANSWER" * 17 not in correctness and " […]" in correctness
    assert "BOB" not in relevance
    assert "Answer this question based on the provided context." in alignment


def test_nothing_is_asked_twice_and_two_judges_share_nothing(tmp_path: Path) -> None:
    with JudgeServer(always(3)) as server:
        first = asker(server, tmp_path)
        outcomes = judged(first)
        assert len(server.prompts) == first.asked == QUESTIONS and first.tokens == 10 * QUESTIONS
        second = asker(server, tmp_path)
        assert judged(second) == outcomes
        assert len(server.prompts) == QUESTIONS and (second.asked, second.cached) == (0, QUESTIONS)
        judged(asker(server, tmp_path, model="other"))
        assert len(server.prompts) == 2 * QUESTIONS
        changed = [*CASES[1:], Case("q0", "What is 0?", "It is 0.", ("0",), "Another answer.")]
        judged(asker(server, tmp_path), changed)
        assert len(server.prompts) == 2 * QUESTIONS + len(METRICS)


def hangs(_: str) -> judge_server.Answer:
    return judge_server.hang()


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda prompt: (429, {"retry-after": "0.05"}, b"slow down"), id="429"),
        pytest.param(lambda prompt: (500, {}, b"<html>"), id="500"),
        pytest.param(lambda prompt: (200, {}, completion("x")[2][:40]), id="half a response"),
        pytest.param(lambda prompt: completion(json.dumps(opinion(prompt, 4))[:-9]), id="half a JSON"),
        pytest.param(lambda prompt: completion("I would say it is quite good."), id="prose"),
        pytest.param(
            lambda prompt: completion({"score": 97, "reason": "", "verdicts": []}), id="off the scale"
        ),
        pytest.param(lambda prompt: (200, {"content-length": "9999"}, b"{"), id="cut off"),
        pytest.param(hangs, id="hangs"),
    ],
)
def test_passing_trouble_is_retried(tmp_path: Path, trouble: Any) -> None:
    seen: set[str] = set()

    def script(_: JudgeServer, prompt: str, __: dict[str, Any]) -> Any:
        if prompt in seen:
            return completion(opinion(prompt, 4))
        seen.add(prompt)
        return trouble(prompt)

    with JudgeServer(script) as server:
        patience = HASTY if trouble is hangs else QUICK
        outcomes = judged(asker(server, tmp_path, patience), CASES[:2])
        assert [outcome.value for outcome in outcomes] == [0.75] * 4 + [1.0] * 2
        assert len(server.prompts) == 2 * len(METRICS) * 2


def test_what_keeps_failing_is_recorded_with_its_reason_and_asked_again_later(tmp_path: Path) -> None:
    ill = True

    def script(_: JudgeServer, prompt: str, __: dict[str, Any]) -> Any:
        if ill and "What is 2?" in prompt:
            return 503, {}, b"overloaded"
        return completion(opinion(prompt, 5))

    with JudgeServer(script) as server:
        outcomes = judged(asker(server, tmp_path))
        failed = [outcome for outcome in outcomes if outcome.value is None]
        assert {outcome.case for outcome in failed} == {"q2"} and len(failed) == len(METRICS)
        assert all(outcome.error == "HTTP 503 (overloaded)" for outcome in failed)
        asked_twice = len(server.prompts) - QUESTIONS
        assert asked_twice == len(METRICS) * (QUICK.attempts - 1)

        samples = to_samples(CASES, outcomes)
        rows = {row.metric: row for row in to_rows(samples, 0.95, trusted())}
        assert rows["g_eval"].value is None and (rows["g_eval"].n, rows["g_eval"].n_failed) == (3, 1)
        assert "1 of 4" in rows["g_eval"].note and "HTTP 503" in rows["g_eval"].note
        assert "HTTP 503" in coverage_problem(list(rows.values()))
        enough = {row.metric: row for row in to_rows(samples, 0.75, trusted())}
        assert enough["g_eval"].value == 1.0 and enough["g_eval"].n_failed == 1
        assert "HTTP 503" in enough["g_eval"].note

        ill = False
        before = len(server.prompts)
        assert all(outcome.value is not None for outcome in judged(asker(server, tmp_path)))
        assert len(server.prompts) - before == len(METRICS)


def trusted() -> Calibration:
    cases = planted_cases(30)
    return calibrate("j", cases, perfect(cases), 0.8, 0)


def perfect(cases: list[Case]) -> list[Outcome]:
    worth = {"right": 1.0, "same": 0.9, "long": 0.9, "wrong": 0.6, "off_topic": 0.2, "empty": 0.0}
    return [
        Outcome(name, case.id, worth.get(case.id.rpartition(":")[2], 0.1))
        for name in METRICS
        for case in cases
    ]


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (lambda *_: (401, {}, b"bad key"), "HTTP 401: it does not accept the key"),
        (lambda *_: (500, {}, b"broken"), "HTTP 500"),
        (judge_server.hang, "did not answer within 1 s"),
        (lambda *_: completion("no idea"), "no JSON"),
        (lambda *_: (429, {"retry-after": "3600"}, b""), "HTTP 429"),
    ],
)
def test_a_dead_judge_is_given_up_at_once_in_one_sentence(tmp_path: Path, script: Any, cause: str) -> None:
    started = time.monotonic()
    with JudgeServer(script) as server, pytest.raises(StudyError) as caught:
        judged(asker(server, tmp_path, HASTY), CASES)
    assert cause in str(caught.value) and "compression run --select 'judged_q*'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 20 and len(server.prompts) <= 7 * QUICK.attempts


def test_a_judge_is_given_up_for_good_though_a_late_answer_comes(tmp_path: Path) -> None:
    """Three questions are refused while the first is still being answered: the rest was never asked."""

    def script(server: JudgeServer, prompt: str, _: dict[str, Any]) -> Any:
        if prompt is server.prompts[0]:
            time.sleep(1.0)
            return completion(opinion(prompt, 3))
        return 400, {}, b"too long"

    with JudgeServer(script) as server, pytest.raises(StudyError, match="HTTP 400"):
        judged(asker(server, tmp_path))


def test_the_score_is_weighted_at_its_own_token() -> None:
    def token(text: str, *others: str) -> dict[str, Any]:
        return {"token": text, "top_logprobs": [{"token": one, "logprob": -1.0} for one in others]}

    def choice(*tokens: dict[str, Any]) -> dict[str, Any]:
        return {"logprobs": {"content": list(tokens)}}

    first = choice(
        token('{"score": '), token("5", "5", "4"), token(', "reason": "since 190'), token("2", "2")
    )
    assert top_of_score(first, '{"score": 5, "reason": "since 1902"}') == (("5", -1.0), ("4", -1.0))
    last = choice(
        token('{"reason": "'), token("5", "5", "1"), token(' words", "score": '), token("2", "2", "3")
    )
    assert top_of_score(last, '{"reason": "5 words", "score": 2}') == (("2", -1.0), ("3", -1.0))
    merged = choice(token('{"score": 5'), token(', "reason": "'), token("5", "1"))
    assert top_of_score(merged, '{"score": 5, "reason": "5"}') is None


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with JudgeServer(always(1)) as server:
        asking = asker(server, tmp_path)
    with pytest.raises(StudyError, match="answered none of the first"):
        judged(asking)


def test_the_time_for_a_run_is_bounded(tmp_path: Path) -> None:
    calls = iter(range(10_000))

    def script(_: JudgeServer, prompt: str, __: dict[str, Any]) -> Any:
        return completion(opinion(prompt, 5)) if next(calls) == 0 else judge_server.hang()

    patience = HASTY.model_copy(update={"run_seconds": 2.5, "attempts": 100, "concurrency": 1})
    started = time.monotonic()
    with JudgeServer(script) as server:
        outcomes = judged(asker(server, tmp_path, patience))
    assert time.monotonic() - started < 20
    assert [outcome.value for outcome in outcomes if outcome.value is not None] == [1.0]
    assert "were spent" in outcomes[-1].error


def test_an_empty_answer_is_worth_nothing_and_not_asked_about(tmp_path: Path) -> None:
    from compression_assets.evaluation.answers import Answer

    answers = [
        Answer("a", "Q?", "C.", ("x",), "p", " \n", 1, True),
        Answer("b", "Q?", "C.", ("x",), "p", "x", 1, True),
    ]
    cases = cases_of(answers, 5)
    with JudgeServer(always(5)) as server:
        outcomes = judged(asker(server, tmp_path), [case for case in cases if case.answer])
        assert len(server.prompts) == len(METRICS)
    samples = to_samples(cases, [*outcomes, *empty_outcomes(cases)])
    rows = {row.metric: row for row in to_rows(samples, 0.95, trusted())}
    assert [rows[name].value for name in ("g_eval", *METRICS)] == [0.5] * 4
    assert rows["g_eval"].n == 2 and rows["g_eval"].n_failed == 0


def test_a_fair_judge_passes_its_test_and_others_do_not(tmp_path: Path) -> None:
    with JudgeServer(judge_server.fair) as server:
        some = planted_cases(10)
        fair = calibrate("fair", some, judged(asker(server, tmp_path), some), 0.7, 0)
        assert len(server.prompts) == len(some) * len(METRICS)
    cases = planted_cases(30)
    for score in fair.scores:
        assert (
            score.accuracy == 1.0
            and score.trusted
            and score.lo
            and score.lo < 1.0
            and not fair.doubt(score.metric)
        )
    assert Calibration.from_json(fair.to_json()) == fair

    same = calibrate(
        "same", cases, [Outcome(name, case.id, 0.5) for name in METRICS for case in cases], 0.8, 0
    )
    assert same.of("g_eval").accuracy == 0.0 and not same.of("g_eval").trusted
    rows = {row.metric: row for row in to_rows(to_samples(CASES, outcomes_of(0.5)), 0.95, same)}
    assert rows["g_eval"].value == 0.5 and "UNTRUSTED: same" in rows["g_eval"].note
    assert rows["judge_trusted"].value == 0.0 and rows["judge_accuracy"].value == 0.0

    # Two of 90 pairs the wrong way round: known by hand, 88 / 90, and Wilson's interval for it.
    slips = [
        Outcome(one.metric, one.case, 1.0) if one.case in ("kiln:wrong", "ink:wrong") else one
        for one in perfect(cases)
    ]
    nearly = calibrate("nearly", cases, slips, 0.8, 0).of("correctness")
    assert (nearly.right, nearly.pairs) == (88, 90) and nearly.trusted
    z, n, p = 1.959964, 90, 88 / 90
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    assert nearly.lo and nearly.lo <= (p + z * z / (2 * n) - half) / (1 + z * z / n) + 1e-6


def outcomes_of(value: float) -> list[Outcome]:
    return [Outcome(name, case.id, value) for name in METRICS for case in CASES]


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert retry_after("7") == 7.0 and retry_after("") == 0.0 and retry_after("soon") == 0.0
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 25 < retry_after(later) < 31


JUDGE_UNTIL_KILLED = """
import sys
from pathlib import Path
from compression_assets_tests.judging_helpers import CASES, asker, judged
class Server: url = sys.argv[1]
judged(asker(Server, Path(sys.argv[2])), CASES)
"""


def test_a_killed_judging_goes_on_where_it_stopped(tmp_path: Path) -> None:
    slow = True

    def script(server: JudgeServer, prompt: str, _: dict[str, Any]) -> Any:
        if slow and len(server.prompts) > 5:
            time.sleep(0.2)
        return completion(opinion(prompt, 3))

    work, cache = tmp_path / "cwd", tmp_path / "cache"
    work.mkdir()
    with JudgeServer(script) as server:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        process = subprocess.Popen(
            [sys.executable, "-c", JUDGE_UNTIL_KILLED, server.url, str(cache)], cwd=work, env=environment
        )
        while len(list(cache.glob("*.json"))) < 5 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        slow = False
        kept = len(list(cache.glob("*.json")))
        assert 5 <= kept < QUESTIONS
        (cache / f".aside-x.{process.pid}").write_text("half an ans")
        server.prompts.clear()
        outcomes = judged(asker(server, cache))
        assert len(server.prompts) == QUESTIONS - kept
        assert {outcome.value for outcome in outcomes} == {0.5, 0.0}
    assert not list(cache.glob(".aside-*"))
    # deepeval leaves nothing behind where it runs
    assert not list(work.iterdir())


def test_a_damaged_cache_entry_is_asked_again(tmp_path: Path) -> None:
    with JudgeServer(always(5)) as server:
        judged(asker(server, tmp_path), CASES[:1])
        file = next(tmp_path.glob("*.json"))
        file.write_text(file.read_text()[:30])
        judged(asker(server, tmp_path), CASES[:1])
        assert len(server.prompts) == len(METRICS) + 1
