"""`compression serve`: llama.cpp answers over OpenAI's API, and the curl that is printed works."""

import json
import os
import shlex
import subprocess
import threading
from pathlib import Path

import pytest

from compression_assets.errors import StudyError
from compression_assets.evaluation.engines import llama_cpp
from compression_assets.sources.gguf_splitting import SPLITTINGS
from compression_assets.takeaway.gguf_file import write_gguf
from compression_assets.takeaway.serve import exported_file, serve
from compression_assets.weights.formats.gguf_types import GgufForm
from compression_assets_tests.gguf_helpers import byte_level_tokenizer, put_tokenizer
from compression_assets_tests.tiny_models import tiny_directory


def exported(root: Path, *names: str) -> None:
    (root / "exports").mkdir(exist_ok=True)
    for name in names:
        (root / "exports" / name).touch()


def test_the_file_is_the_one_that_was_exported(tmp_path: Path) -> None:
    exported(tmp_path, "p_q.q8_0.gguf")
    with pytest.raises(
        StudyError, match="p is not exported; do that first: compression export p --format gguf:q8_0"
    ):
        exported_file(tmp_path, "p")
    exported(tmp_path, "p.gguf")
    assert exported_file(tmp_path, "p").name == "p.gguf"
    exported(tmp_path, "p.q4_0.gguf")
    with pytest.raises(StudyError, match="p is exported in bf16, q4_0: say which with --type"):
        exported_file(tmp_path, "p")
    assert exported_file(tmp_path, "p", "q4_0").name == "p.q4_0.gguf"
    with pytest.raises(StudyError, match="compression export p --format gguf:q5_0"):
        exported_file(tmp_path, "p", "q5_0")
    with pytest.raises(StudyError, match="unknown GGUF type 'q8_1': did you mean 'q8_0'"):
        exported_file(tmp_path, "p", "q8_1")


def test_a_file_of_a_model_that_was_made_again_is_not_served(tmp_path: Path) -> None:
    exported(tmp_path, "p.q8_0.gguf")
    manifest = tmp_path / "models" / "p" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    os.utime(tmp_path / "exports" / "p.q8_0.gguf", (1, 1))
    with pytest.raises(StudyError, match="made again since: compression export p --format gguf:q8_0"):
        exported_file(tmp_path, "p")
    os.utime(manifest, (0, 0))
    assert exported_file(tmp_path, "p").name == "p.q8_0.gguf"


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed: pip install --group test")
def test_the_curl_that_is_printed_is_answered(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(SPLITTINGS[2])
    directory = tiny_directory(tmp_path / "model", vocab_size=720)
    put_tokenizer(directory, tokenizer)
    write_gguf(directory, tmp_path / "m.gguf", "tiny", "a test", GgufForm("q8_0"))
    said: list[str] = []
    ready, done = threading.Event(), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        ready.set()

    server = threading.Thread(target=serve, args=(tmp_path / "m.gguf", 0, say, done))
    server.start()
    try:
        assert ready.wait(60)
        where, command = said[0].splitlines()
        assert where.startswith("m.gguf is served on http://127.0.0.1:")
        answer = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(answer.stdout)["choices"][0]["message"]["content"]
        port = int(where.split(":")[2].partition("/")[0])
        with pytest.raises(StudyError, match="try another --port"):
            serve(tmp_path / "m.gguf", port, say, done)
    finally:
        done.set()
        server.join(60)
    assert not server.is_alive()
