"""The command `compression`: run a study, look at its results, find its history. No science in here."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.takeaway.commands import add_takeaway

if TYPE_CHECKING:
    from compression_assets.store.metrics_db import MetricsDatabase


def main() -> None:
    """Entry point; exits with 1 when something failed, after one sentence that says what."""
    arguments = _parser().parse_args()
    if arguments.study:
        os.environ["COMPRESSION_STUDY"] = arguments.study
        os.environ.pop("DAGSTER_HOME", None)
    try:
        sys.exit(arguments.command(arguments))
    except StudyError as error:
        sys.exit(f"compression: {error}")
    except Exception as error:
        from compression_assets.store.write_errors import storage_problem

        if (sentence := storage_problem(error)) is None:
            raise
        sys.exit(f"compression: {sentence}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compression", description=__doc__)
    parser.set_defaults(study=None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(
        commands, "run", _run, "materialise the study, or a part of it; finished work is recognised"
    )
    run.add_argument("--select", help="a Dagster asset selection, such as '*final_p_kd_q*'")
    run.add_argument("--ordering", help="one ordering and everything it needs, such as P-KD-Q")

    rebuild = _command(commands, "rebuild", _rebuild, "make assets again although they are there")
    rebuild.add_argument("assets", nargs="+", metavar="ASSET")

    evaluate = _command(
        commands,
        "evaluate",
        _evaluate,
        "measure a model directory as the study measures its own; writes nothing",
    )
    evaluate.add_argument("directory")
    _command(commands, "leaderboard", _leaderboard, "print the leaderboard beside the paper's Table 1")
    query = _command(commands, "query", _query, "print the result of a SQL query on the study's database")
    query.add_argument("sql")
    _command(
        commands, "report", _report, "write the report of what is measured so far, and print where it is"
    )
    plan = _command(
        commands, "plan", _plan, "say what the study will weigh, take and need, without fetching a weight"
    )
    plan.add_argument(
        "--device", help="a6000, a100, h100 or cpu (default: a6000 for a model from the hub, else cpu)"
    )
    plan.add_argument("--measure", action="store_true", help="time this machine's CPU first")
    survival = _command(
        commands,
        "sweep-survival",
        _sweep_survival,
        "how much of a distillation survives quantization, by budget",
    )
    survival.add_argument("--lrs", required=True, help="learning rates, such as 5e-5,2e-4,1e-3")
    survival.add_argument("--tokens", required=True, help="tokens of distillation, such as 6144,24576")
    survival.add_argument("--seeds", default="0", help="of training and rounding, such as 0,1,2 (default: 0)")
    survival.add_argument(
        "--starts", default="q_d", help="models to start from, such as q_d,base (default: q_d)"
    )
    survival.add_argument(
        "--roundings",
        help="of nearest, stochastic, nearest:kept, stochastic:kept, gptq and apart (default: the first four)",
    )
    survival.add_argument("--recipe", default="KD", help="KD or a variant of it in the study (default: KD)")
    add_takeaway(commands, _command)
    _command(commands, "check", _check, "read the study file and say what it comes to")
    _command(commands, "home", _home, "print the study's DAGSTER_HOME, making it if needed")
    return parser


def _command(commands, name, function, text):  # type: ignore[no-untyped-def]
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument(
        "--study", help="a preset's name or the path of a study file (default: COMPRESSION_STUDY, else demo)"
    )
    parser.set_defaults(command=function)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from compression_assets.graph.run import run_study

    started = time.monotonic()
    succeeded = run_study(arguments.select, arguments.ordering)
    print(f"{'done' if succeeded else 'failed'} after {time.monotonic() - started:.0f} s")
    return 0 if succeeded else 1


def _rebuild(arguments: argparse.Namespace) -> int:
    from compression_assets.graph.run import run_study

    return 0 if run_study(rebuild=tuple(arguments.assets)) else 1


def _leaderboard(_: argparse.Namespace) -> int:
    from compression_assets.reporting.leaderboard import doubts, read_leaderboard
    from compression_assets.tables import plain

    columns, rows = read_leaderboard(_database(), paper=True)
    print(plain(columns, rows))
    for sentence in doubts(_database()):
        print(sentence)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from compression_assets.machine.runtime import prepare_process
    from compression_assets.machine.workers import cuda_devices
    from compression_assets.reporting.leaderboard import with_half_width
    from compression_assets.study.places import current_study, storage_root, study_root
    from compression_assets.tables import plain
    from compression_assets.takeaway.evaluate import evaluate_directory

    prepare_process()
    study = current_study()
    device = "cuda" if cuda_devices() else "cpu"
    rows = evaluate_directory(
        study, study_root(study), Path(arguments.directory), storage_root() / ".downloads", device
    )
    table = [
        (row.metric, with_half_width(row.value, row.lo, row.hi), row.unit, row.n, row.note) for row in rows
    ]
    print(plain(["metric", "value", "unit", "n", "note"], table))
    return 0


def _query(arguments: argparse.Namespace) -> int:
    from compression_assets.tables import plain

    print(plain(*_database().query(arguments.sql)))
    return 0


def _report(_: argparse.Namespace) -> int:
    from compression_assets.reporting.page import write_report
    from compression_assets.reporting.read import read_report_data
    from compression_assets.study.places import current_study, study_root

    study = current_study()
    root = study_root(study)
    file, _same = write_report(read_report_data(study, root, _database()), root)
    print(file)
    return 0


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


def _sweep_survival(arguments: argparse.Namespace) -> int:
    from compression_assets.machine.runtime import prepare_process
    from compression_assets.study.places import current_study
    from compression_assets.takeaway.survival_sweep import sweep
    from compression_assets.takeaway.survival_verdict import report

    rates, tokens, seeds = (
        _numbers(arguments.lrs, float, "--lrs"),
        _numbers(arguments.tokens, int, "--tokens"),
        _numbers(arguments.seeds, int, "--seeds"),
    )
    prepare_process()
    study = current_study()
    roundings = arguments.roundings.split(",") if arguments.roundings else None
    starts = arguments.starts.split(",")
    print(report(study, sweep(study, starts, rates, tokens, seeds, roundings, arguments.recipe)))
    return 0


def _numbers(text: str, kind: Callable[[str], Any], option: str) -> list[Any]:
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise StudyError(f"{option} {text}: write numbers joined by commas, such as 1,2") from None


def _check(_: argparse.Namespace) -> int:
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
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from compression_assets.planning.devices import device
    from compression_assets.planning.plan import default_device, plan_here
    from compression_assets.planning.summary import as_text
    from compression_assets.study.places import current_study

    study = current_study()
    print(as_text(plan_here(study, device(arguments.device or default_device(study), arguments.measure))))
    return 0


def _home(_: argparse.Namespace) -> int:
    from compression_assets.study.places import current_study, dagster_home

    print(dagster_home(current_study()))
    return 0


if __name__ == "__main__":
    main()
