"""Time to derive the database of a study of two hundred models from its artifacts, and to see that nothing changed."""

import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.common import Targets, spread, table, turns
from compression_assets.evaluation.answers import Answer, write_answers
from compression_assets.evaluation.measured import write_measured
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.reporting.database import database_of, refresh
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.study.files import PRESETS, load_study
from compression_assets.study.leaderboard_models import leaderboard_models, parts
from compression_assets.study.model import Study
from compression_assets.study.names import model_key, relative_directory

SEQUENCES = ["P", "KD-P", "P-KD", "P-KD-Q", "KD-P-Q", "P-Q-KD", "KD-Q-P", "Q-KD-P", "Q-P-KD", "P-P"]
RATIOS = [round(0.1 + 0.04 * step, 2) for step in range(20)]
ITEMS = {"metrics": 500, "answers": 20, "quality": 200, "judged": 100}
METRICS = {"metrics": 1, "answers": 1, "quality": 12, "judged": 4}
"""Items and metrics with items of each measurement of a model: about three thousand samples in all."""

RUNS = 5
LIMIT = 2.0


def main() -> None:
    """Print what there is and the seconds that it takes."""
    print("## Deriving the database\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "study"
        study = _study(Path(folder))
        _leave_artifacts(study, root)
        started = time.process_time()
        refresh(study, root)
        first = time.process_time() - started
        models, samples = _counts(root)
        print(
            f"{models} models of {len(study.nodes)} on the way, {len(parts(study))} measurements each, {samples:,} "
            f"samples, {database_of(root).file.stat().st_size / 2**20:.0f} MiB. Processor seconds, minimum / median / "
            f"maximum of {RUNS}. The first time, with every interval computed: {first:.0f} s.\n"
        )
        touched = root / relative_directory("metrics_base") / "manifest.json"
        seconds = turns(
            {
                "derived after one measurement": lambda: (touched.touch(), refresh(study, root)),
                "nothing has changed": lambda: refresh(study, root),
            },
            RUNS,
        )
    print(table(("what", "processor s"), [(what, spread(found)) for what, found in seconds.items()]))
    targets = Targets()
    derived = seconds["derived after one measurement"]
    targets.add(f"derived in under {LIMIT:.0f} s", spread(derived), sorted(derived)[RUNS // 2] < LIMIT)
    targets.finish()


def _study(folder: Path) -> Study:
    raw = yaml.safe_load((PRESETS / "smoke.yaml").read_text())
    raw["techniques"]["P"]["multiple_of"] = 1
    raw["evaluation"]["statistics"] = {"resamples": 100}
    sweep = [{"technique": "P", "setting": "ratio", "values": RATIOS, "orderings": SEQUENCES}]
    raw |= {"name": "large", "orderings": ["KD"], "sweep": sweep}
    (folder / "large.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return load_study(folder / "large.yaml")


def _leave_artifacts(study: Study, root: Path) -> None:
    curve = [{"step": step, "loss": 2.0, "learning_rate": 1e-4} for step in range(100)]
    for node in study.nodes.values():
        _leave(root, model_key(node), {"metadata": {"loss_curve": curve}, "path": list(node.path)})
    for model in leaderboard_models(study):
        for part in parts(study):
            _leave(root, model.asset(part), {"metadata": {"run_id": "r"}}, part)


def _leave(root: Path, asset: str, about: dict[str, object], part: str | None = None) -> None:
    store = ArtifactStore(root)
    directory = root / relative_directory(asset)
    with store.exclusive(directory, asset), store.building(directory) as work:
        if part is None:
            (work / "config.json").write_text("{}")
        else:
            _fill(work, part)
        store.publish(
            work, directory, asset=asset, fingerprint="f", created_at="2026-01-01T00:00:00+00:00", **about
        )


def _fill(work: Path, part: str) -> None:
    names = [f"{part}_{index}" for index in range(METRICS[part])]
    rows = [MetricRow(name, 0.5, "0..1", ITEMS[part], higher_is_better=True) for name in names]
    samples = [
        Sample(name, f"item-{item:06d}", (item * 7919 % 1000) / 1000)
        for name in names
        for item in range(ITEMS[part])
    ]
    write_measured(work, rows, samples)
    if part == "answers":
        text = "What the passage says, in some words. " * 10
        write_answers(
            [Answer(str(n), text, text, ("one", "two"), text, text, 9, True) for n in range(200)], work
        )


def _counts(root: Path) -> tuple[int, int]:
    sql = "SELECT (SELECT count(*) FROM models), (SELECT count(*) FROM all_samples)"
    models, samples = database_of(root).query(sql)[1][0]
    return models, samples


if __name__ == "__main__":
    main()
