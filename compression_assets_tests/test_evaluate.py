"""Measuring a model directory that no study built, with the command that a user gives."""

from pathlib import Path

import pytest

from compression_assets_tests.project import Project
from compression_assets_tests.tiny_models import tiny_directory

pytestmark = pytest.mark.timeout(700)


def test_a_directory_from_elsewhere_is_measured(finished_study: Project, tmp_path: Path) -> None:
    # The same tokenizer as the study's base, and weights of its own.
    directory = tiny_directory(tmp_path / "theirs", "qwen2", seed=3)
    code, output = finished_study.compression("evaluate", str(directory))
    assert code == 0, output
    values = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line}
    assert float(values["perplexity"][0].replace(",", "")) > 1
    assert values["perplexity"][1].startswith("[") and values["perplexity"][2].endswith("]")
    assert {"size_mib", "compression_ratio", "f1", "clarity", "tokens_per_second"} <= set(values)


def test_a_quantized_model_of_the_study_has_the_figures_of_its_row(finished_study: Project) -> None:
    code, output = finished_study.compression("evaluate", str(finished_study.root / "models" / "q"))
    assert code == 0, output
    ((stored,),) = finished_study.query("SELECT value FROM metrics.q WHERE metric = 'perplexity'")
    shown = next(line.split()[1] for line in output.splitlines() if line.startswith("perplexity"))
    assert float(shown) == pytest.approx(stored, rel=0.01)


def test_what_is_no_model_is_refused(finished_study: Project, tmp_path: Path) -> None:
    code, output = finished_study.compression("evaluate", str(tmp_path / "nothing"))
    assert code == 1
    assert "is no directory" in output
