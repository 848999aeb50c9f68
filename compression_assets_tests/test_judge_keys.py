"""Keys of judges: sent to the judge, shown nowhere, asked for by name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.asking import HIDDEN, Asker
from compression_assets.evaluation.judging.cache import AnswerCache
from compression_assets.evaluation.judging.judges import open_backend
from compression_assets.evaluation.judging.prompts import METRICS
from compression_assets.evaluation.judging.settings import GeminiJudge, OpenAiJudge
from compression_assets_tests.judge_server import JudgeServer, completion, opinion
from compression_assets_tests.judging_helpers import CASES, QUICK, asker, judged

KEY = "PLANTED-KEY-5d1f0c"


def test_a_key_is_sent_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def echoing(_: JudgeServer, prompt: str, __: dict[str, Any]) -> Any:
        if "What is 1?" in prompt:
            return 500, {}, f"cannot serve {KEY}".encode()
        return completion({**opinion(prompt, 4), "reason": f"your key is {KEY}"})

    with JudgeServer(echoing) as server:
        asking = asker(server, tmp_path, api_key_env="JUDGE_KEY")
        outcomes = judged(asking)
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    errors = {outcome.error for outcome in outcomes if outcome.value is None}
    assert errors == {f"HTTP 500 (cannot serve {HIDDEN})"}
    with JudgeServer(lambda *_: (403, {}, KEY.encode())) as server, pytest.raises(StudyError) as caught:
        judged(asker(server, tmp_path / "other", api_key_env="JUDGE_KEY"))
    shown: list[BaseException | None] = [caught.value]
    while shown[-1] is not None:
        assert KEY not in repr(shown[-1])
        shown.append(shown[-1].__cause__ or shown[-1].__context__)
    assert KEY not in caplog.text
    assert all(KEY not in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_keys_that_are_missing_or_in_the_wrong_place_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(StudyError, match="export GEMINI_API_KEY"):
        open_backend(GeminiJudge(kind="gemini"), None, "", "cpu", tmp_path)
    with pytest.raises(ValueError, match="never the key itself"):
        GeminiJudge(kind="gemini", api_key_env="AIzaSy-123")
    for address in (
        "http://user:secret@host/v1",
        "http://host/v1?key=secret",
        "ftp://host",
        "localhost:11434",
    ):
        with pytest.raises(ValueError, match="must"):
            OpenAiJudge(kind="openai_compatible", base_url=address, model="m")


def test_gemini_through_deepevals_own_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    calls = 0

    def script(_: JudgeServer, prompt: str, request: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            detail = {
                "error": {"code": 429, "message": f"quota of {KEY}", "details": [{"retryDelay": "0.1s"}]}
            }
            return 429, {"content-type": "application/json"}, json.dumps(detail).encode()
        text = json.dumps(opinion(prompt, 4))
        part = {"content": {"role": "model", "parts": [{"text": text[:-5] if calls == 2 else text}]}}
        body = {"candidates": [part], "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 3}}
        return 200, {"content-type": "application/json"}, json.dumps(body).encode()

    with JudgeServer(script) as server:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        patience = QUICK
        asking = Asker(
            open_backend(GeminiJudge(kind="gemini"), None, "", "cpu", tmp_path),
            AnswerCache(tmp_path),
            patience,
        )
        outcomes = judged(asking, CASES[:1])
    assert [outcome.value for outcome in outcomes] == [0.75, 0.75, 1.0]
    assert len(server.prompts) == len(METRICS) + 2 and asking.tokens == 30
    assert {headers["x-goog-api-key"] for headers in server.headers} == {KEY}
    assert all(KEY not in file.read_text() for file in tmp_path.iterdir())
    # The server is gone now.
    asking = Asker(
        open_backend(GeminiJudge(kind="gemini"), None, "", "cpu", tmp_path),
        AnswerCache(tmp_path / "b"),
        QUICK,
    )
    with pytest.raises(StudyError, match="answered none of the first") as caught:
        judged(asking)
    assert KEY not in str(caught.value)
