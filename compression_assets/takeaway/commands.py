"""Commands of the take-away: recommend, export, serve, doctor, clean. Parsing and printing only."""

import argparse
from collections.abc import Callable
from typing import Any


def add_takeaway(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `compression`; `command` makes one that knows --study."""
    advice = command(commands, "recommend", _recommend, "say which model to take under limits that you state")
    advice.add_argument("--max-size", type=float, metavar="MIB", help="of the weights file")
    advice.add_argument("--max-perplexity", type=float, metavar="P")
    advice.add_argument("--max", action="append", default=[], metavar="METRIC=VALUE", help="may be repeated")
    advice.add_argument("--min", action="append", default=[], metavar="METRIC=VALUE", help="such as f1=0.2")

    export = command(commands, "export", _export, "write a model for use elsewhere, and check it")
    export.add_argument("model", help="such as p_kd_q, or an intermediate one such as p_kd")
    export.add_argument("--format", default="hf", metavar="FORMAT", help="hf, w4a16, gguf or gguf:TYPE")

    serve = command(
        commands, "serve", _serve, "run an exported model in llama.cpp, as OpenAI's API on this machine"
    )
    serve.add_argument("model", help="exported before, as gguf")
    serve.add_argument("--type", help="of the tensors, such as q4_0, where there are several files")
    serve.add_argument("--port", type=int, default=8080, help="0 for a free one (default 8080)")

    command(commands, "doctor", _doctor, "say what this machine lacks for the study")

    clean = command(
        commands, "clean", _clean, "free intermediates that nothing needs any more; never a final model"
    )
    clean.add_argument("--dry-run", action="store_true", help="only say what would go")


def _recommend(arguments: argparse.Namespace) -> int:
    from compression_assets.reporting.database import up_to_date
    from compression_assets.study.places import current_study, study_root
    from compression_assets.takeaway.advice import advise, as_text
    from compression_assets.takeaway.recommend import parse_limits

    study = current_study()
    limits = parse_limits(arguments.max_size, arguments.max_perplexity, arguments.max, arguments.min)
    database, _ = up_to_date(study, study_root(study))
    choice, rows = advise(database, limits)
    print(as_text(choice, rows, limits, arguments.study or study.name, study_root(study) / "models"))
    return 0 if choice.model else 1


def _export(arguments: argparse.Namespace) -> int:
    from compression_assets.machine.runtime import prepare_process
    from compression_assets.study.places import current_study, study_root
    from compression_assets.takeaway.export import export

    prepare_process()
    study = current_study()
    done = export(study, study_root(study), arguments.model, arguments.format)
    print(
        f"{done.path}: {done.bytes / 2**20:,.1f} MiB; loaded back, perplexity {done.after:.4f} "
        f"(the study's model {done.before:.4f}){f'; {done.engine}' if done.engine else ''}"
    )
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from functools import partial

    from compression_assets.study.places import current_study, study_root
    from compression_assets.takeaway.serve import exported_file, serve

    file = exported_file(study_root(current_study()), arguments.model, arguments.type)
    serve(file, arguments.port, partial(print, flush=True))
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from compression_assets.study.places import current_study
    from compression_assets.takeaway.doctor import as_text, examine

    findings = examine(current_study())
    print(as_text(findings))
    return 1 if any(finding.ok is False for finding in findings) else 0


def _clean(arguments: argparse.Namespace) -> int:
    from compression_assets.study.places import current_study, study_root
    from compression_assets.takeaway.cleaning import as_text, free, unneeded

    study = current_study()
    root = study_root(study)
    found = unneeded(study, root)
    if not arguments.dry_run:
        free(root, found)
    print(as_text(found, root, arguments.dry_run))
    return 0
