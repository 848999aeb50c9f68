"""The command line itself: help, usage errors, a study written by `init`, pipes and keys that end a command early."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from compression_assets.cli import commands
from compression_assets.errors import next_command
from compression_assets.graph.run import interrupts_kept
from compression_assets.sources.gguf_splitting import SPLITTINGS
from compression_assets.study.files import load_study
from compression_assets.takeaway.gguf_file import write_gguf
from compression_assets_tests.gguf_helpers import byte_level_tokenizer, put_tokenizer
from compression_assets_tests.project import Project
from compression_assets_tests.tiny_models import tiny_directory

NAMES = sorted(commands.commands)
INTERRUPTED = (130, -signal.SIGINT)
"""Python ends itself by the signal where that arrived inside an `exec`, as in the import of a dataclass."""
COMPRESSION = (sys.executable, "-m", "compression_assets.cli")


def understood(words: list[str]) -> click.Context:
    """The context in which `compression` would run the words; raises click.UsageError for what it does not know."""
    context = commands.make_context("compression", list(words), resilient_parsing=False)
    name, command, rest = commands.resolve_command(context, words)
    assert command is not None
    return command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_command_has_examples_that_are_understood(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPRESSION_STUDY", "smoke")
    command = commands.commands[name]
    assert command.get_short_help_str(limit=60).endswith("."), "cut off in the list of commands"
    examples = re.findall(r"^  compression (.+)$", command.epilog or "", re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert words[0] == name and understood(words)


def test_a_mistake_in_usage_exits_with_2_and_one_in_the_study_with_1(tmp_path: Path) -> None:
    project = Project(tmp_path)
    assert project.compression("bogus")[0] == 2
    code, output = project.compression("run", "--bogus")
    assert code == 2 and "No such option" in output
    code, output = project.compression("check", "--study", "smok")
    assert code == 1 and output.startswith(
        "compression: there is no study called 'smok': did you mean 'smoke'"
    )
    code, output = project.compression("--version")
    assert code == 0 and re.fullmatch(r"compression, version [\d.]+\n", output)


def test_a_shell_completes_commands_and_options() -> None:
    complete = BashComplete(commands, {}, "compression", "_COMPRESSION_COMPLETE")
    assert [found.value for found in complete.get_completions([], "le")] == ["leaderboard"]
    assert [found.value for found in complete.get_completions(["run"], "--ord")] == ["--ordering"]


@pytest.mark.parametrize(
    ("model", "chats", "written"),
    [
        ("models/mine", "chats.jsonl", ("directory", "jsonl")),
        ("a/b", "chats.jsonl", ("hub", "jsonl")),
        ("a/b@abc", "c/d:train_sft@1f", ("hub", "hub")),
        ("w.gguf", "c/d", ("gguf", "hub")),
    ],
)
def test_init_writes_a_study_that_check_accepts(
    tmp_path: Path, model: str, chats: str, written: tuple[str, str]
) -> None:
    project = Project(tmp_path)
    (project.storage / "models").mkdir()
    tiny_directory(project.storage / "models" / "mine")
    (project.storage / "chats.jsonl").write_text("")
    if model == "w.gguf":
        released = tiny_directory(tmp_path / "released", vocab_size=720)
        put_tokenizer(released, byte_level_tokenizer(SPLITTINGS[2]))
        write_gguf(released, project.storage / model, "tiny", "a test")
    code, output = project.compression("init", model, chats, "--output", "sub dir/my-study.yaml")
    assert code == 0, output
    assert "compression plan --study 'sub dir/my-study.yaml'" in output
    code, output = project.compression("check", "--study", "sub dir/my-study.yaml")
    assert code == 0 and "study my_study: 23 models" in output, output
    study = load_study(project.storage / "sub dir" / "my-study.yaml")
    assert (study.base_model.kind, study.data.chat.kind) == written
    code, output = project.compression("init", model, chats, "--output", "sub dir/my-study.yaml")
    assert code == 1 and "is there already" in output


def test_the_sources_that_init_is_given_are_written_in_full(tmp_path: Path) -> None:
    project = Project(tmp_path)
    code, output = project.compression("init", "a/b@abc", "c/d:train_sft@1f", "--output", "mine.yaml")
    assert code == 0, output
    study = load_study(project.storage / "mine.yaml")
    assert study.base_model.model_dump() == {"kind": "hub", "repo": "a/b", "revision": "abc"}
    wanted = {"kind": "hub", "dataset": "c/d", "split": "train_sft", "revision": "1f"}
    assert study.data.chat.model_dump() == wanted


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("nothing", "c/d"), "nothing is no directory, no .gguf file and no hub id"),
        (("a/b", "nothing"), "nothing is no .jsonl file and no data set of the hub"),
        (("a/b", "absent.jsonl"), "absent.jsonl does not exist"),
        (("a/b", "c/d", "--output", "study.txt"), "must end in .yaml"),
        (("a/b", "c/d", "--output", "demo.yaml"), "name 'demo' is a preset's"),
    ],
)
def test_init_leaves_nothing_behind_that_cannot_be_used(
    tmp_path: Path, words: tuple[str, ...], cause: str
) -> None:
    project = Project(tmp_path)
    code, output = project.compression("init", *words)
    assert code == 1 and cause in output and output.count("\n") == 1, output
    assert not list(project.storage.iterdir())


def test_the_next_command_is_quoted_and_names_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSION_STUDY", "my studies/a.yaml")
    assert (
        next_command("run", "--select", "*q") == "compression run --select '*q' --study 'my studies/a.yaml'"
    )
    monkeypatch.delenv("COMPRESSION_STUDY")
    assert next_command("run") == "compression run"


def test_judges_are_held_against_people(finished_study: Project, tmp_path: Path) -> None:
    items = finished_study.query(
        "SELECT DISTINCT item FROM all_samples WHERE metric = 'g_eval' ORDER BY item"
    )
    file = tmp_path / "people.csv"
    lines = [f"{item},{model},{place}" for place, (item,) in enumerate(items) for model in ("base", "kd")]
    file.write_text("\n".join(["item,model,score", *lines, "nowhere,kd,1"]))
    code, output = finished_study.compression("judge-agreement", str(file))
    assert code == 0 and "g_eval" in output and "the base model" in output
    assert f"{len(lines)} of the {len(lines) + 1} answers in" in output
    file.write_text("item,model,score\nnowhere,kd,1\n")
    code, output = finished_study.compression("judge-agreement", str(file))
    assert code == 1 and "no answer of" in output and "Traceback" not in output


def test_a_reader_that_has_had_enough_is_no_error(finished_study: Project) -> None:
    code, output = finished_study.command("bash", "-c", f"{shlex.join(COMPRESSION)} leaderboard | head -n 1")
    assert code == 0 and output.startswith("model ") and output.count("\n") == 1
    # The reader is gone before anything is written.
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMPRESSION, "leaderboard"],
        env=finished_study.environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_ctrl_c_in_a_run_says_that_running_again_goes_on(tmp_path: Path) -> None:
    project = Project(tmp_path, orderings=["Q"], evaluation={"perplexity": {"batch_size": 8}})
    process = project.start(*COMPRESSION, "run")
    deadline = time.monotonic() + 100
    while not list((project.root / "progress").glob("*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode in INTERRUPTED, output
    assert "compression: stopped; what is finished is kept, the same command goes on" in output
    assert "Traceback" not in output


def test_an_interrupt_that_a_finalizer_swallows_is_raised_again() -> None:
    class Finalized:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def dropped() -> None:
        Finalized()
        time.sleep(10)

    with interrupts_kept(), pytest.raises(KeyboardInterrupt):
        dropped()


def test_ctrl_c_in_an_export_leaves_no_half_of_it(finished_study: Project, tmp_path: Path) -> None:
    project = finished_study
    exports = project.root / "exports"
    process = project.start(*COMPRESSION, "export", "base")
    deadline = time.monotonic() + 100
    while not list(exports.glob(".building-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode in INTERRUPTED, output
    assert "Traceback" not in output and not list(exports.glob("*"))
