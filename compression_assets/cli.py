"""The command `compression`: every command of the project. It reads words, calls, and prints.

Completion in bash: eval "$(_COMPRESSION_COMPLETE=bash_source compression)"; zsh_source and fish_source for the others.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compression_assets.errors import StudyError, next_command

if TYPE_CHECKING:
    from compression_assets.evaluation.rows import MetricRow
    from compression_assets.store.metrics_db import MetricsDatabase

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell has it (128 + SIGINT)."""


class _InOrder(click.Group):
    """Lists its commands as they are written below: in the order in which a study is worked on."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="compression-assets", prog_name="compression")
def commands() -> None:
    """In which order should a language model be pruned, distilled and quantized?

    Commands work on one study: --study, else COMPRESSION_STUDY, else the demo. First steps: compression init, then
    check, plan and run.
    """


def main() -> None:
    """Entry point; exits with 1 and one sentence when something failed, with 2 when the command is not understood."""
    try:
        code = commands.main(prog_name="compression", standalone_mode=False) or 0
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        print("compression: stopped; what is finished is kept, the same command goes on", file=sys.stderr)
        code = INTERRUPTED
    except StudyError as error:
        code = f"compression: {error}"
    except BrokenPipeError:
        # Whoever read the output (`| head`) has had enough: no error to tell of. Nothing is left to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        from compression_assets.store.write_errors import storage_problem

        if (sentence := storage_problem(error)) is None:
            raise
        code = f"compression: {sentence}"
    sys.exit(code)


def _choose_study(_: click.Context, __: click.Parameter, study: str | None) -> None:
    if study:
        os.environ["COMPRESSION_STUDY"] = study
        os.environ.pop("DAGSTER_HOME", None)


def _command(*examples: str, on_study: bool = True) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command whose help ends in examples, with --study. Its function returns the exit code; None stands for 0."""

    def register(function: Callable[..., int | None]) -> click.Command:
        epilog = "\n".join(["\b", "Examples:", *(f"  compression {example}" for example in examples)])
        return commands.command(epilog=epilog)(_study_option(function) if on_study else function)

    return register


_study_option = click.option(
    "--study",
    metavar="NAME|FILE",
    help="A preset's name or the path of a study file (default: COMPRESSION_STUDY, else demo).",
    callback=_choose_study,
    expose_value=False,
)


@_command(
    "init HuggingFaceTB/SmolLM2-360M-Instruct HuggingFaceH4/ultrachat_200k:train_sft",
    "init models/mine chats.jsonl --output my_study.yaml",
    on_study=False,
)
@click.argument("model")
@click.argument("chats")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="my_study.yaml",
    show_default=True,
    help="The file to write; its name becomes the study's.",
)
def init(model: str, chats: str, output: Path) -> None:
    """Write a commented study for your own MODEL and CHATS.

    MODEL is a hub id (owner/name or owner/name@revision), a directory or a GGUF file. CHATS is a JSONL file or a split
    of a hub data set (owner/name, :split for another than train, @revision for another than main); each row has
    {"messages": [{"role": …, "content": …}]}.
    """
    from compression_assets.study.new_study import write_study

    study = write_study(model, chats, output)
    os.environ["COMPRESSION_STUDY"] = str(output)
    print(f"{output}: study {study.name}; look it over, then run: {next_command('plan')}")


@_command("check --study my_study.yaml")
def check() -> None:
    """Read the study file and say what it comes to."""
    from compression_assets.planning.fit import refuse_unfit
    from compression_assets.study.places import current_study, storage_root, study_root

    study = current_study()
    for note in refuse_unfit(study, storage_root() / ".downloads", study_root(study)):
        print(note, file=sys.stderr)
    orderings = ", ".join(ordering.text for ordering in study.parsed_orderings)
    print(
        f"study {study.name}: {len(study.nodes)} models for the orderings {orderings}; "
        f"results go to {study_root(study)}"
    )
    for warning in study.warnings:
        print(f"warning: {warning}")


@_command("plan --study my_study.yaml --device a6000", "plan --study demo --measure")
@click.option(
    "--device",
    metavar="NAME",
    help="a6000, a100, h100 or cpu (default: a6000 for a model from the hub, else cpu).",
)
@click.option("--measure", is_flag=True, help="Time this machine's CPU first.")
def plan(device: str | None, measure: bool) -> None:
    """Say what the study will weigh, take and need.

    Fetches no weights.
    """
    from compression_assets.planning import devices
    from compression_assets.planning.plan import default_device, plan_here
    from compression_assets.planning.summary import as_text
    from compression_assets.study.places import current_study

    study = current_study()
    print(as_text(plan_here(study, devices.device(device or default_device(study), measure))))


@_command("doctor --study my_study.yaml")
def doctor() -> int:
    """Say what this machine lacks for the study.

    Looks at packages, device, memory, disk, network and the names of keys; exits with 1 when something is lacking.
    """
    from compression_assets.study.places import current_study
    from compression_assets.takeaway.doctor import as_text, examine

    findings = examine(current_study())
    print(as_text(findings))
    return 1 if any(finding.ok is False for finding in findings) else 0


@_command("run --study smoke", "run --ordering P-KD-Q", "run --select '*final_p_kd_q*'")
@click.option("--select", metavar="ASSETS", help="A Dagster asset selection, such as '*final_p_kd_q*'.")
@click.option("--ordering", metavar="ORDERING", help="One ordering and everything it needs, such as P-KD-Q.")
def run(select: str | None, ordering: str | None) -> int:
    """Build and measure the study, or a part of it.

    Finished work is recognised, and an interrupted run goes on where it stopped.
    """
    from compression_assets.graph.run import run_study

    started = time.monotonic()
    succeeded = run_study(select, ordering)
    print(f"{'done' if succeeded else 'failed'} after {time.monotonic() - started:.0f} s")
    if succeeded:
        _print_answer()
    return 0 if succeeded else 1


def _print_answer() -> None:
    """What the study says by now, or why it says nothing: a run may have been of a part that measures nothing."""
    from compression_assets.reporting.answer import answer
    from compression_assets.study.places import current_study, study_root

    study = current_study()
    try:
        print(f"\n{answer(study, study_root(study), _database())}")
    except StudyError as error:
        print(f"no answer yet: {error}")


@_command("rebuild final_p_kd_q")
@click.argument("assets", nargs=-1, required=True, metavar="ASSET...")
def rebuild(assets: tuple[str, ...]) -> int:
    """Make assets again although they are there."""
    from compression_assets.graph.run import run_study

    return 0 if run_study(rebuild=assets) else 1


@_command("leaderboard", "leaderboard --all", "leaderboard --csv")
@click.option("--all", "everything", is_flag=True, help="Every metric, a table a group.")
@click.option("--csv", "form", flag_value="csv", help="Every metric as CSV, in full precision.")
@click.option("--json", "form", flag_value="json", help="The same as JSON.")
def leaderboard(everything: bool, form: str | None) -> None:
    """Print the leaderboard."""
    from compression_assets.reporting.leaderboard import leaderboard_csv, leaderboard_json, leaderboard_text
    from compression_assets.reporting.read import read_results
    from compression_assets.study.places import current_study, study_root

    study = current_study()
    results = read_results(study, study_root(study), _database())
    if form == "csv":
        print(leaderboard_csv(results))
    elif form == "json":
        print(leaderboard_json(results))
    else:
        print(leaderboard_text(results, everything=everything))


@_command(
    'query "SELECT * FROM metrics.p_kd_q"', 'query "SELECT ordering, perplexity, size_mib FROM leaderboard"'
)
@click.argument("sql")
def query(sql: str) -> None:
    """Print the result of a SQL query on the study's database.

    A query reads only: neither the database nor any other file can be written, or any other file read.
    """
    from compression_assets.tables import plain

    print(plain(*_database().query(sql)))


@_command("report")
def report() -> None:
    """Write the report of what is measured so far.

    Prints where it is: one HTML page.
    """
    from compression_assets.reporting.page import write_report
    from compression_assets.reporting.read import read_report_data
    from compression_assets.study.places import current_study, study_root

    study = current_study()
    root = study_root(study)
    file, _same = write_report(read_report_data(study, root, _database()), root)
    print(file)


@_command("recommend --max-size 120", "recommend --max-perplexity 60 --min f1=0.2")
@click.option("--max-size", type=float, metavar="MIB", help="Of the weights file.")
@click.option("--max-perplexity", type=float, metavar="P")
@click.option("--max", "most", multiple=True, metavar="METRIC=VALUE", help="May be repeated.")
@click.option(
    "--min", "least", multiple=True, metavar="METRIC=VALUE", help="Such as f1=0.2; may be repeated."
)
def recommend(
    max_size: float | None, max_perplexity: float | None, most: tuple[str, ...], least: tuple[str, ...]
) -> int:
    """Say which model to take under stated limits.

    Exits with 1 when no model is within them.
    """
    from compression_assets.study.places import current_study, study_root
    from compression_assets.takeaway.advice import advise, as_text
    from compression_assets.takeaway.recommend import parse_limits

    limits = parse_limits(max_size, max_perplexity, most, least)
    study = current_study()
    root = study_root(study)
    choice, limits, results = advise(study, root, _database(), limits)
    print(as_text(choice, limits, results, root / "models"))
    return 0 if choice.model else 1


@_command("search --max-size 60 --goal perplexity --hours 3", "search --max-size 100 --goal kl")
@click.option(
    "--max-size",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MIB",
    required=True,
    help="Of the weights file.",
)
@click.option(
    "--goal",
    type=click.Choice(["perplexity", "kl", "g_eval"]),
    default="perplexity",
    show_default=True,
    help="kl: mean distance to the base's predictions.",
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="For trials, over all calls together.",
)
def search(max_size: float, goal: str, hours: float) -> None:
    """Find the best recipe below a size.

    Tries orders and recipes with growing shares of the training tokens (the section search of the study file says
    which), and ends with the winner beside the study's best order within the size. Stop it whenever you like: the same
    command goes on.
    """
    import shlex

    import yaml

    from compression_assets.search.searching import search as find
    from compression_assets.study.files import study_file
    from compression_assets.study.places import current_study, named_study, storage_root, study_root

    study = current_study()
    source = study_file(named_study())
    root, downloads = study_root(study), storage_root() / ".downloads"
    found = find(study, source, root, downloads, max_mib=max_size, goal_name=goal, hours=hours, say=_say)
    print(f"\n{found.verdict}\n\nto have it in a study file of yours:\n")
    print(yaml.safe_dump(found.recipe, sort_keys=False))
    print(f"model:   {root / 'models' / found.model}")
    print(f"trials:  {shlex.join(['compression', 'leaderboard', '--study', str(found.file)])}")
    print(f"picture: {found.picture}")
    if found.freeable:
        print(
            f"disk:    {found.freeable / 2**20:,.0f} MiB of intermediates, which {next_command('clean')} frees; "
            "put the recipe into your study first, or its own go too"
        )


def _say(line: str) -> None:
    print(line, flush=True)


@_command(
    "export p_kd_q",
    "export p_kd --format gguf:q4_k_m",
    "export p_kd_q --push me/smaller --dry-run",
)
@click.argument("model")
@click.option(
    "--format",
    "form",
    metavar="FORMAT",
    default="hf",
    show_default=True,
    help="hf, w4a16 (of an int4 model), gguf, or gguf:TYPE with TYPE bf16, f16, q8_0, q6_k, q5_k_m, q5_0, q4_k_m, "
    "iq4_nl or q4_0.",
)
@click.option("--embeddings", metavar="TYPE", help="GGUF type of embeddings and output layer.")
@click.option("--imatrix", is_flag=True, help="Round by how large inputs are on the calibration set.")
@click.option("--push", "repo", metavar="OWNER/NAME", help="Send it to a new private repository of a hub.")
@click.option("--update", is_flag=True, help="With --push: replace files of a repository that is there.")
@click.option("--dry-run", is_flag=True, help="With --push: only say what would be sent.")
def export(
    model: str,
    form: str,
    embeddings: str | None,
    imatrix: bool,
    repo: str | None,
    update: bool,
    dry_run: bool,
) -> None:
    """Write a MODEL of the study for use elsewhere.

    MODEL is a key such as p_kd_q, or of an intermediate one such as p_kd. What is written is loaded back, and kept only
    if it scores as the study's model does. --push sends it, with its model card, to huggingface.co, or to the hub at
    HF_ENDPOINT; the token is taken from HF_TOKEN.
    """
    from compression_assets.machine.runtime import prepare_process
    from compression_assets.study.places import current_study, study_root
    from compression_assets.takeaway import push
    from compression_assets.takeaway.export import export

    if (update or dry_run) and not repo:
        raise click.UsageError("--update and --dry-run go with --push")
    prepare_process()
    if repo and not dry_run:
        push.refuse_push(repo, update)
    study = current_study()
    done = export(study, study_root(study), model, form, embeddings=embeddings, importance=imatrix)
    print(
        f"{done.path}: {done.bytes / 2**20:,.1f} MiB; loaded back, perplexity {done.after:.4f} "
        f"(the study's model {done.before:.4f}){f'; {done.engine}' if done.engine else ''}"
    )
    if repo and dry_run:
        print(push.dry_run(done.path, done.card, repo))
    elif repo:
        print(f"sent to {push.push(done.path, done.card, repo, update)}")


@_command("serve p_kd_q", "serve p_kd --type q4_0 --port 8081")
@click.argument("model")
@click.option(
    "--type", "kind", metavar="TYPE", help="Of the tensors, such as q4_0, where there are several files."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for a free one."
)
def serve(model: str, kind: str | None, port: int) -> None:
    """Run an exported MODEL in llama.cpp, as OpenAI's API on this machine.

    MODEL was exported before, as gguf, or is in the study's evaluation.serving. Prints a curl command that works.
    """
    from functools import partial

    from compression_assets.study.places import current_study, study_root
    from compression_assets.takeaway.serve import exported_file
    from compression_assets.takeaway.serve import serve as serve_file

    serve_file(exported_file(study_root(current_study()), model, kind), port, partial(print, flush=True))


@_command("evaluate path/to/model --study demo")
@click.argument("directory", type=click.Path(path_type=Path))
def evaluate(directory: Path) -> None:
    """Measure a model DIRECTORY that no study built.

    It is measured as the study measures its own models; nothing is written.
    """
    from compression_assets.machine.runtime import prepare_process
    from compression_assets.machine.workers import cuda_devices
    from compression_assets.study.places import current_study, storage_root, study_root
    from compression_assets.tables import plain
    from compression_assets.takeaway.evaluate import evaluate_directory

    prepare_process()
    study = current_study()
    device = "cuda" if cuda_devices() else "cpu"
    rows = evaluate_directory(study, study_root(study), directory, storage_root() / ".downloads", device)
    table = [(row.metric, _figure(row), row.unit, row.n, row.note) for row in rows]
    print(plain(["metric", "value", "unit", "n", "note"], table))


def _figure(row: "MetricRow") -> str | None:
    from compression_assets.evaluation.metrics import metric
    from compression_assets.reporting.leaderboard import with_interval
    from compression_assets.tables import decimals

    if row.value is None:
        return None
    interval = None if row.lo is None or row.hi is None else (row.lo, row.hi)
    return with_interval(
        row.value, interval, decimals([row.value], metric(row.metric).digits, interval or ())
    )


@_command("judge-agreement scores.csv")
@click.argument("file", type=click.Path(path_type=Path))
def judge_agreement(file: Path) -> None:
    """Hold each judge's scores against people's.

    FILE is a CSV with the columns item, model and score; items and models as in the database's all_samples.
    """
    from compression_assets.study.places import current_study, study_root
    from compression_assets.takeaway.people import judges_against_people

    study = current_study()
    print(judges_against_people(study, study_root(study), _database(), file))


@_command("clean --dry-run")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def clean(dry_run: bool) -> None:
    """Free intermediates that nothing needs any more.

    A final model is never touched.
    """
    from compression_assets.graph.readers import readers
    from compression_assets.study.places import current_study, study_root
    from compression_assets.takeaway.cleaning import as_text, free, unneeded

    study = current_study()
    root = study_root(study)
    found = unneeded(study, root, readers(study))
    if not dry_run:
        free(root, found)
    print(as_text(found, root, dry_run))


@_command("home --study smoke")
def home() -> None:
    """Print the study's DAGSTER_HOME, making it if needed."""
    from compression_assets.study.places import current_study, dagster_home

    print(dagster_home(current_study()))


def _database() -> "MetricsDatabase":
    """The study's database with everything that is on disk; what it lacks is said on stderr."""
    from compression_assets.reporting.database import left_out, up_to_date
    from compression_assets.study.places import current_study, study_root

    study = current_study()
    database, behind = up_to_date(study, study_root(study))
    if behind:
        print(f"the newest results are not in the database yet: {behind}", file=sys.stderr)
    for artifact, reason in left_out(database):
        print(f"{artifact} is left out of the database: {reason}", file=sys.stderr)
    return database


if __name__ == "__main__":
    main()
