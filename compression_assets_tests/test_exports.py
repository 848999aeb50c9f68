"""`compression export` of a study's models, final ones and those on the way to them."""

import sys
from pathlib import Path

import gguf

from compression_assets.evaluation.engines import llama_cpp
from compression_assets.sources.gguf_splitting import SPLITTINGS
from compression_assets_tests.gguf_helpers import byte_level_tokenizer, put_tokenizer
from compression_assets_tests.hub_server import WRITE, HubServer
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
    study["techniques"]["Q:int4"] = {"kind": "int4"}
    project.write({**study, "base_model": base, "orderings": ["P-Q", "P-Q:int4"]})
    code, output = project.compression("run")
    assert code == 0, output

    code, output = project.compression("export", "p")
    assert code == 0 and (project.root / "exports" / "p" / "model.safetensors").is_file(), output
    with HubServer() as server:
        command = (sys.executable, "-m", "compression_assets.cli", "export", "p_q", "--push", "me/small")
        online = {"HF_ENDPOINT": server.url, "HF_TOKEN": WRITE, "HF_HUB_OFFLINE": "0"}
        code, output = project.command(*command, **online)
        assert code == 0 and f"sent to {server.url}/me/small" in output, output
        sent = {file.name: file.read_bytes() for file in (project.root / "exports" / "p_q").iterdir()}
        assert server.repos == {"me/small": sent}
    assert b"| perplexity |" in sent["README.md"]
    code, output = project.compression("export", "p_q", "--format", "gguf", "--push", "me/p_q", "--dry-run")
    assert code == 0 and "nothing was sent; to me/p_q would go" in output, output
    assert ("predicts the same" if llama_cpp.available() else "not tried in llama.cpp") in output
    fields = gguf.GGUFReader(project.root / "exports" / "p_q.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "llama-bpe"

    code, output = project.compression("export", "p_q", "--format", "gguf:q4_0")
    assert code != 0 and "is in NF4: in q4_0 its weights would be rounded a second time" in output
    assert "export p as gguf:q4_0, or this one as gguf:q8_0" in output
    code, output = project.compression("export", "p_q", "--format", "w4a16")
    assert code != 0 and "p_q is in NF4, not all in int4" in output
    code, output = project.compression("export", "p_q", "--format", "gguf:q3")
    assert code != 0 and "unknown export format 'gguf:q3': did you mean 'gguf:q" in output

    code, output = project.compression("export", "p_q_int4", "--format", "gguf:q4_0")
    assert code == 0 and "MiB; loaded back, perplexity" in output, output
    assert ("predicts the same" if llama_cpp.available() else "not tried in llama.cpp") in output
    modelfile = (project.root / "exports" / "p_q_int4.q4_0.Modelfile").read_text()
    assert "FROM ./p_q_int4.q4_0.gguf" in modelfile
    code, output = project.compression("export", "p_q_int4", "--format", "w4a16")
    assert code == 0 and (project.root / "exports" / "p_q_int4" / "model.safetensors").is_file(), output

    code, output = project.compression("run", "--select", "*final_p_q", "--ordering", "P-Q")
    assert code != 0 and "--select and --ordering both say what is run" in output
    study["techniques"]["P"] |= {"ratio": 0.25}
    project.write({**study, "base_model": base, "orderings": ["P-Q", "P-Q:int4"]})
    code, output = project.compression("export", "p_q")
    assert code != 0 and "p_q is of an earlier state of the study: P was made by another recipe" in output

    code, output = project.compression("export", "pq")
    assert code != 0 and "no model 'pq'" in output and "p_q" in output
