"""What the documents say is so: every command runs, every link leads somewhere, generated pages are up to date.

Commands stand in indented or fenced blocks of README.md, CONTRIBUTING.md and docs/. Each is run on the finished smoke
study, or stands in one of the lists below with the reason why it is not.
"""

import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compression_assets import cli
from compression_assets.study.files import load_study
from compression_assets.study.places import CLAIM
from compression_assets_tests.made_results import as_if_made_by
from compression_assets_tests.project import Project
from compression_assets_tests.test_commands import understood

pytestmark = pytest.mark.timeout(700)

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "compression_assets"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    "make",
    "compression",
    "dagster",
    "dg",
    "source",
    "use_study",
    "pre-commit",
    "git",
    "python",
    "pip",
}
COMMANDS |= {"scripts/lock.sh", "cp", "ls", "export", "curl", "duckdb", "kill", "nvidia-smi", "cat", "docker"}

ELSEWHERE = {
    r"make (setup|demo|test)\b.*": "the set-up commands, run from a clean clone by .ci/run",
    r"make (format|lint|lock|test-faults|test-browser)\b.*": "work on the repository, not on a study",
    r"compression run +--study (smoke|my_study\.yaml)": "the fixture finished_study is made by it",
    r"compression search .*": "takes minutes; run for real by test_search.py",
    r"compression leaderboard --study storage/.*": "the study of a search: test_search.py shows one",
    r"(export (COMPRESSION_|AWS_|RAY_)|pip install -e '\.\[cluster\]').*": "for a cluster, which make cluster-demo has",
    r"make (cluster-demo|test-cluster)": "compression_assets_tests/cluster runs studies on the same servers",
    r"compression init .*": "run for real by test_commands.py",
    r"make (lock && make test|update_snapshot|docs)": "writes into the repository; its content has tests of its own",
    r"scripts/lock\.sh .*": "resolves against the package index",
    r"pre-commit install": "writes into the repository's .git",
    r"git diff .*": "shows changes of the repository",
    r"source \.venv/bin/activate": "every other command runs as if it had been given: see `environment`",
    r"use_study \S+": "run for real by test_use_study",
    r"make ui\b.*": "a server: test_browser.py starts the same one",
    r"dagster dev\b.*": "a server: test_browser.py starts it",
    r"dagster asset materialize .*": "run for real by test_reruns.py, in both spellings",
    r"compression evaluate .*": "run for real by test_evaluate.py",
    r"compression run --select tracking": "run for real by test_tracking.py",
    r"compression export .* --push .*": "run for real by test_exports.py, with a hub on loopback",
    r"dg launch .*": "run for real by test_reruns.py",
    r"dagster job execute .*": "run for real by test_reruns.py",
    r"dg scaffold defs .*": "for another project; test_component.py lays one out",
}
"""Commands that another test runs, or that would work on the repository rather than on a study."""

CANNOT = {
    r".*--study paper\b(?!.*\bplan\b).*": "needs the Hugging Face hub",
    r".*CUDA_VISIBLE_DEVICES.*": "needs a GPU",
    r"compression run --study (rescue|survival)": "takes minutes to hours; test_survival.py runs a smaller one",
    r"python -m benchmarks\.survival .*": "reads a study that is not made here; test_survival.py has a smaller one",
    r"compression evaluate .*": "DIR stands for a model directory of one's own",
}
"""Commands that cannot run here."""


def blocks(document: Path) -> Iterator[list[str]]:
    """Code blocks: fenced ones in a shell's or Python's name or none, and those indented by four spaces."""
    text = document.read_text()
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in ("", "sh", "bash", "console", "python", "sql"):
            yield body.splitlines()
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"(?:(?<=\n\n)|\A)((?:    .*\n|\n(?=    ))+)", text):
        yield [line.removeprefix("    ") for line in block.splitlines()]


def commands_of(document: Path) -> list[str]:
    found = []
    for block in blocks(document):
        joined = re.sub(r" *\\\n *", " ", "\n".join(block))
        for line in joined.splitlines():
            bare = re.sub(r"\s+#\s.*$", "", line.removeprefix("$ ")).strip()
            if without_variables(bare).partition(" ")[0] in COMMANDS:
                found.append(bare)
    return found


def queries_of(document: Path) -> list[str]:
    """Blocks of SQL, as they are given to DuckDB."""
    joined = ("\n".join(block) for block in blocks(document))
    return [text for text in joined if re.match(r"\s*(SELECT|WITH|FROM)\b", text)]


def without_variables(command: str) -> str:
    """The command without the assignments before it."""
    return re.sub(r"^(?:[A-Z_]+=(?:\"[^\"]*\"|\S*) +)+", "", command)


def reason(command: str, known: dict[str, str]) -> str | None:
    return next(
        (why for pattern, why in known.items() if re.fullmatch(pattern, without_variables(command))), None
    )


EVERY = sorted({command for document in DOCUMENTS for command in commands_of(document)})
RUN = [command for command in EVERY if reason(command, ELSEWHERE | CANNOT) is None]


def test_commands_are_found() -> None:
    assert "make demo" in EVERY
    assert any(command.startswith("compression check") for command in RUN)
    assert len(RUN) >= 8


@pytest.fixture(scope="module")
def storage(finished_study: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage in which smoke, demo and a study of one's own are finished: copies of one another, by name."""
    root = tmp_path_factory.mktemp("documents")
    for name in ("smoke", "demo", "my_study"):
        shutil.copytree(
            finished_study.root,
            root / name,
            copy_function=shutil.copy2,
            ignore=shutil.ignore_patterns(CLAIM),
        )
    as_if_made_by(load_study("demo"), root / "demo")
    shutil.copy(ROOT / "storage" / "dagster.yaml", root)
    own = finished_study.study_file.read_text().replace("name: tiny", "name: my_study")
    (root / "my_study.yaml").write_text(own)
    return root


@pytest.mark.parametrize("command", RUN)
def test_command(
    command: str, storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPRESSION_STORAGE", str(storage))
    monkeypatch.setenv("COMPRESSION_STUDY", "smoke")
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.chdir(storage)
    step = without_variables(command)
    words = shlex.split(step)
    if words[0] == "compression":
        run_here(words[1:], monkeypatch)
    else:
        run_outside(step, storage)
    assert capsys.readouterr().out.strip() or words[0] == "python"


@pytest.mark.parametrize("sql", [sql for document in DOCUMENTS for sql in queries_of(document)])
def test_sql(sql: str, finished_study: Project) -> None:
    assert finished_study.query(sql)


@pytest.mark.parametrize(
    "command", [one for one in EVERY if without_variables(one).startswith("compression ")]
)
def test_a_command_that_is_not_run_is_at_least_understood(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESSION_STUDY", "smoke")
    assert understood(shlex.split(without_variables(command))[1:])


def run_here(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line's own entry point, in this process: starting Python for each would take most of the time."""
    monkeypatch.setattr(sys, "argv", ["compression", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0


def run_outside(step: str, storage: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_use_study(storage: Path) -> None:
    """`source .venv/bin/activate` ends in scripts/env.sh, which defines use_study."""
    script = f'. "{ROOT}/scripts/env.sh" && use_study demo && echo "$COMPRESSION_STUDY $DAGSTER_HOME"'
    done = subprocess.run(
        ["bash", "-euc", script],
        env={**os.environ, "COMPRESSION_STORAGE": str(storage), "COMPRESSION_STUDY": "smoke"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["demo", str(storage / "demo" / "dagster_home")]


def test_python_in_the_readme(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(storage.parent)
    (block,) = [block for block in blocks(ROOT / "README.md") if block[0].startswith(("import ", "from "))]
    code = "\n".join(block).replace("storage/", f"{storage}/")
    names: dict[str, object] = {}
    exec(code, names)
    assert names["model"].config.vocab_size  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", document.read_text())
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_functions_that_are_named_exist(document: Path) -> None:
    """`folder/file.py:function`, as CONTRIBUTING.md follows a weight, in the package or beside it."""
    for place, name in re.findall(r"`([\w/]+\.py):([\w.]+)`", document.read_text()):
        file = next(file for file in (PACKAGE / place, ROOT / place) if file.is_file())
        assert name in defined_in(ast.parse(file.read_text())), f"{place} has no {name}"


def defined_in(tree: ast.Module | ast.ClassDef) -> set[str]:
    """Functions and classes of a module, and methods as Class.method."""
    found = set()
    for part in tree.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(part.name)
        if isinstance(part, ast.ClassDef):
            found |= {f"{part.name}.{name}" for name in defined_in(part)}
    return found


def test_the_study_file_reference_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "study_file_docs.py"))
    assert (ROOT / "docs" / "study_file.md").read_text() == script["page"](), "run `make docs`"


def test_the_leaderboard_is_written_between_its_markers(
    storage: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COMPRESSION_STORAGE", str(storage))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- leaderboard -->\nold\n<!-- /leaderboard -->\nafter\n")
    script = ROOT / "scripts" / "fill_readme.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--study", "smoke", str(page)])
    runpy.run_path(str(script), run_name="__main__")
    text = page.read_text()
    assert text.startswith("before\n<!-- leaderboard -->\n")
    assert text.endswith("<!-- /leaderboard -->\nafter\n")
    assert "old" not in text
    assert len(re.findall(r"^\| (?:base|KD|P|Q|[KDPQ-]{5,}) \|", text, re.MULTILINE)) == 10
