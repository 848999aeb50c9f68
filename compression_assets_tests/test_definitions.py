"""What Dagster loads: a study that cannot be used is one sentence in Dagster's own commands too."""

import runpy
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from compression_assets.errors import StudyError


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"COMPRESSION_STUDY": "dmo"}, "did you mean 'demo'?"),
        ({"COMPRESSION_STUDY": "{here}/study.yaml"}, "unknown key 'seeed': did you mean 'seed'?"),
        ({"COMPRESSION_WORKERS": "many"}, "set it to a whole number"),
    ],
)
def test_an_unusable_study_is_a_sentence_to_whoever_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    (tmp_path / "study.yaml").write_text("name: tiny\nseeed: 3\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(here=tmp_path))

    @click.command()
    def load() -> None:
        """As `dagster asset materialize` does it: definitions are loaded inside a click command."""
        runpy.run_module("compression_assets.graph.definitions")

    done = CliRunner().invoke(load)
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert sentence in done.output
    assert len(done.output.splitlines()) == 1
    with pytest.raises(StudyError):
        runpy.run_module("compression_assets.graph.definitions")


def test_the_web_interface_listens_on_this_machine_alone() -> None:
    recipe = (Path(__file__).parents[1] / "Makefile").read_text().partition("\nui:")[2].partition("\n\n")[0]
    assert "dagster dev -h 127.0.0.1 -p 3000" in recipe
