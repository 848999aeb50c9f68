"""`compression export` of a study's models, final ones and those on the way to them."""

from pathlib import Path

import gguf

from compression_assets.sources.gguf_splitting import SPLITTINGS
from compression_assets.takeaway import llama_cpp
from compression_assets_tests.gguf_helpers import byte_level_tokenizer, put_tokenizer
from compression_assets_tests.project import Project
from compression_assets_tests.tiny_models import tiny_directory


def test_any_model_of_a_study_is_exported(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(SPLITTINGS[2])
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    put_tokenizer(tiny_directory(tmp_path / "model", vocab_size=720, **ends), tokenizer)
    project = Project(tmp_path)
    study = {name: project.read()[name] for name in ("name", "seed", "data", "techniques")}
    base = {"kind": "directory", "path": str(tmp_path / "model")}
    project.write({**study, "base_model": base, "orderings": ["P-Q"]})
    code, output = project.compression("run")
    assert code == 0, output

    code, output = project.compression("export", "p")
    assert code == 0 and (project.root / "exports" / "p" / "model.safetensors").is_file(), output
    code, output = project.compression("export", "p_q", "--format", "gguf")
    assert code == 0, output
    assert ("predicts the same" if llama_cpp.available() else "not tried in llama.cpp") in output
    fields = gguf.GGUFReader(project.root / "exports" / "p_q.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "llama-bpe"
    code, output = project.compression("export", "pq")
    assert code != 0 and "no model 'pq'" in output and "p_q" in output
