"""The study's judges against scores that people gave to the same answers."""

from pathlib import Path

from compression_assets.errors import StudyError, next_command
from compression_assets.evaluation.judging.agreement import COLUMNS, against_people, read_people
from compression_assets.reporting.read import read_results
from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.study.leaderboard_models import leaderboard_models
from compression_assets.study.model import Study
from compression_assets.study.names import relative_directory
from compression_assets.tables import plain


def judges_against_people(study: Study, root: Path, database: MetricsDatabase, file: Path) -> str:
    """A table of correlations by judge and metric, and how many of the people's scores it rests on.

    root: storage/<study>. file: a CSV with the columns item, model, score. Only answers that were judged as the study
    now says count. Raises StudyError when the study has no judge, the file cannot be read, or no answer is in both.
    """
    if study.evaluation.judge is None:
        raise StudyError(f"study {study.name} has no judge to hold against people: give it evaluation.judge")
    people = read_people(file)
    results = read_results(study, root, database)
    store = artifacts_of(root)
    assets = {
        model.key: model.asset("judged")
        for model in leaderboard_models(study)
        if "g_eval" in results.metrics.get(model.key, {})
    }
    judged = {
        model: store.needed(root / relative_directory(asset), asset, "judge-agreement")
        for model, asset in assets.items()
    }
    rows = against_people(judged, people, study.seed, results.judge)
    if not rows:
        see = next_command("query", "SELECT DISTINCT model, item FROM all_samples WHERE metric = 'g_eval'")
        raise StudyError(
            f"no answer of {file} was judged in study {study.name}: its columns {', '.join(COLUMNS)} name items and "
            f"models as all_samples does; see: {see}"
        )
    table = plain(list(rows[0]), [list(row.values()) for row in rows])
    return f"{table}\n{max(row['n'] for row in rows)} of the {len(people)} answers in {file} were judged"
