"""A search from its beginning to its end: prepare, try, conclude."""

from collections.abc import Callable
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.evaluation.metrics import metric
from compression_assets.machine.locks import try_lock
from compression_assets.planning.work import volumes
from compression_assets.reporting.read import is_untrusted
from compression_assets.reporting.search import basis
from compression_assets.search.brackets import Setting, run_brackets
from compression_assets.search.conclusion import Found, concluded
from compression_assets.search.foreseen import base_config, predicted_mib
from compression_assets.search.found import Figures, Target, goal
from compression_assets.search.ledger import Ledger
from compression_assets.search.records import trial_rows, write_records
from compression_assets.search.run import run_assets
from compression_assets.search.widened import DISTILLATION_SET, WidenedStudy
from compression_assets.store.fingerprints import fingerprint
from compression_assets.study.files import SEARCH
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL
from compression_assets.study.orderings import BASE, BASE_ORDERING, Ordering
from compression_assets.study.search import ORDERS
from compression_assets.training.work import Volume
from compression_assets.weights.architectures import Config

JOURNAL, WIDENED = "journal.log", "study.yaml"
NOTHING = Volume(0, 0, 0)


def search(
    study: Study,
    source: Path,
    root: Path,
    downloads: Path,
    *,
    max_mib: float,
    goal_name: str,
    hours: float,
    say: Callable[[str], None],
) -> Found:
    """Search as `compression search` does; an earlier search for the same, finished or not, is gone on with.

    source: the study's file. root: its storage. Raises StudyError, and KeyboardInterrupt when interrupted.
    """
    target = goal(goal_name, study)
    folder = root / SEARCH / f"{goal_name}_{max_mib:g}".replace(".", "p")
    folder.mkdir(parents=True, exist_ok=True)
    lock = try_lock(root / ".locks" / SEARCH, "searching")
    if lock is None:
        raise StudyError(f"another search of study {study.name} is running: wait for its end")
    with lock:
        widened = WidenedStudy(study, source, folder / WIDENED)
        orders = _orders(study, widened)
        ledger = _ledger(study, folder, widened, orders, target)
        base = _base(study, widened, root, downloads)
        written = _within(study, base, max_mib)
        say(f"{len(written)} of the study's own orders are within {max_mib:g} MiB")
        _prepare(study, widened, root, target, written, ledger)
        setting = Setting(
            widened=widened,
            root=root,
            base=base,
            volume=Volume(0, 0, ledger.tokens or 0),
            space=study.search,
            orders=orders,
            target=target,
            higher_is_better=bool(metric(target.metric).higher_is_better),
            max_mib=max_mib,
            seconds=3600 * hours,
            say=say,
        )
        about = {
            "search": folder.name,
            "basis": basis(study),
            "metric": target.metric,
            "max_size_mib": max_mib,
        }
        try:
            run_brackets(setting, ledger)
        finally:
            widened.write()
            write_records(root, folder, trial_rows(setting, ledger, about), [])
        return concluded(study, setting, ledger, written, about)


def _ledger(study: Study, folder: Path, widened: WidenedStudy, orders: list[str], target: Target) -> Ledger:
    """What this search has done by now. Another one begins where recipes, data or space are no longer the same."""
    space = study.search.model_dump(mode="json", include={"settings", "shares", "keep", "rungs"})
    name = fingerprint({"study": basis(study), "space": space, "orders": orders, "metric": target.metric})
    return Ledger(
        folder / JOURNAL,
        name[:16],
        study.search,
        orders,
        widened.trains,
        seed=study.seed,
        higher_is_better=bool(metric(target.metric).higher_is_better),
    )


def _orders(study: Study, widened: WidenedStudy) -> list[str]:
    """The orders of the space; those of the default that the study cannot run are left out. StudyError for the rest."""
    if study.search.orders is not None:
        for order in study.search.orders:
            try:
                widened.study(order)
            except StudyError as error:
                raise StudyError(f"search.orders: {order} cannot be tried ({error})") from error
        return list(study.search.orders)
    found, reason = [], ""
    for order in ORDERS:
        try:
            widened.study(order)
            found.append(order)
        except StudyError as error:
            reason = str(error)
    if not found:
        raise StudyError(f"the study can run none of the orders that are searched by default ({reason})")
    return found


def _base(study: Study, widened: WidenedStudy, root: Path, downloads: Path) -> Config:
    """The base model's config; where it is known nowhere, the model is fetched."""
    try:
        return base_config(study, root, downloads)
    except StudyError:
        widened.write()
        run_assets(widened.file, [BASE_MODEL])
        return base_config(study, root, downloads)


def _within(study: Study, base: Config, max_mib: float) -> list[Ordering]:
    """The study's own orders within a size, without their repeats."""
    own = [ordering for ordering in study.parsed_orderings if ordering.path and ordering.seed is None]
    return [ordering for ordering in own if predicted_mib(study, ordering, base) <= max_mib]


def _prepare(
    study: Study, widened: WidenedStudy, root: Path, target: Target, written: list[Ordering], ledger: Ledger
) -> None:
    """Make and measure what is missing of the base, the data and the study's own orders within the size."""
    figures = Figures(study, root)
    wanted = [
        f"{part}_{one.key}"
        for one in written
        if figures.value(one, target) is None or figures.size(one) is None
        for part in target.parts
    ]
    if ledger.tokens is None:
        wanted += [f"{part}_{BASE}" for part in target.parts]
        wanted += [DISTILLATION_SET] * (study.data.splits.distillation is not None)
    if wanted:
        widened.write()
        run_assets(widened.file, wanted)
    if ledger.tokens is None:
        base = Figures(study, root).measured(BASE_ORDERING, target.part, target.metric)
        if base is None:
            raise StudyError("the base model could not be measured: mend what the run says, and search again")
        if is_untrusted({"note": base.row.note}):
            raise StudyError(
                f"{target.metric} is {base.row.note}: no model should be chosen by it, search for perplexity or kl"
            )
        ledger.set_tokens(volumes(study, root).get("distillation", NOTHING).trained)
