"""What the database says of artifacts on disk, with real files: leaderboard, rows, tables, lineage, what is damaged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.evaluation.judging.calibration import Accuracy, Calibration, write_calibration
from compression_assets.evaluation.measured import INTERVALS, read_measured, write_measured
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.evaluation.settings import StatisticsSettings
from compression_assets.evaluation.statistics import with_intervals
from compression_assets.reporting.database import database_of, left_out, refresh
from compression_assets.store.metrics_schema import LEADERBOARD_METRICS
from compression_assets.store.tables import write_table
from compression_assets.study.model import Study
from compression_assets_tests.measured_study import CREATED, leave, measure, row, small_study

ITEMS = [Sample("perplexity", item, value, 3) for item, value in (("a", 2.5), ("b", 4.0), ("c", 3.0))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "study"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return small_study(tmp_path, "P", "P-Q", "Q")


def read(root: Path, sql: str) -> list[tuple[Any, ...]]:
    return database_of(root).query(sql)[1]


def test_a_measurement_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [row("perplexity", 3.0), MetricRow("f1", None, "0..1", 0, None, 2, note="no item has a value")]
    samples = [*ITEMS, Sample("f1", "a", None, error="timeout")]
    write_measured(tmp_path, rows, samples)
    assert read_measured(tmp_path) == (rows, samples)
    write_measured(tmp_path, rows, [])
    assert read_measured(tmp_path) == (rows, [])


def test_the_leaderboard_fills_part_by_part_in_the_studys_order(tmp_path: Path, root: Path) -> None:
    study = small_study(tmp_path, "P-Q")
    measure(root, "metrics_p_q", [row("perplexity", 5.0), row("size_mib", None, note="not there")], ITEMS)
    assert refresh(study, root) == ""
    columns, found = database_of(root).query("SELECT * FROM leaderboard")
    expected = [name + suffix for name in LEADERBOARD_METRICS for suffix in ("", "_lo", "_hi")]
    assert columns == ["model", "ordering", *expected, "notes"]
    record = dict(zip(columns, found[0], strict=True))
    assert (record["perplexity"], record["g_eval"], record["notes"]) == (5.0, None, "size_mib: not there")
    measure(root, "metrics_base", [row("perplexity", 3.0), row("arc_easy_acc", 0.25)])
    refresh(study, root)
    found = read(root, "SELECT model, ordering, perplexity, arc_easy_acc FROM leaderboard")
    assert found == [("base", "base", 3.0, 0.25), ("p_q", "P-Q", 5.0, None)]


def test_intervals_are_those_of_the_samples_and_follow_the_studys_confidence(
    study: Study, root: Path
) -> None:
    rows = [replace(row("perplexity", 2.87), aggregate="exp_mean"), row("size_mib", 4.0)]
    measure(root, "metrics_p", rows, ITEMS)
    settings = study.evaluation.statistics
    for confidence in (0.95, 0.8):
        asked = StatisticsSettings(confidence=confidence, resamples=300)
        changed = study.model_copy(
            update={"evaluation": study.evaluation.model_copy(update={"statistics": asked})}
        )
        refresh(changed, root)
        expected = with_intervals(rows, ITEMS, asked, study.seed)
        assert expected[0].lo is not None
        found = read(root, "SELECT metric, value, lo, hi, n, higher_is_better FROM metrics.p ORDER BY metric")
        assert found == [(one.metric, one.value, one.lo, one.hi, 7, False) for one in expected]
        assert len(list((root / INTERVALS).iterdir())) == 1
    assert settings.confidence == 0.95


def test_rows_say_where_they_come_from_and_stale_ones_can_be_told(study: Study, root: Path) -> None:
    base = leave(root, "base_model", {"config.json": "{}"}, recipe={"kind": "random"})
    pruned = leave(root, "model_p", {"config.json": "[]"}, technique="P", path=["P"], parent="base_model")
    for asset, model, version in (
        ("metrics_base", "models/base", base.data_version),
        ("metrics_p", "models/p", pruned.data_version),
    ):
        measure(root, asset, [row("perplexity", 3.0)], ITEMS, inputs={model: version})
    leave(root, "model_p", {"config.json": "{ }"}, technique="P", path=["P"], parent="base_model")
    refresh(study, root)
    stale = (
        "SELECT model FROM all_metrics JOIN models USING (model) "
        "WHERE all_metrics.data_version <> models.data_version"
    )
    assert read(root, stale) == [("p",)]
    assert read(root, "SELECT part, run_id FROM metrics.base WHERE year(measured_at) = 2026") == [
        ("metrics", "r")
    ]
    assert read(root, "SELECT count(*), sum(weight) FROM samples.p WHERE part = 'metrics'") == [(3, 9.0)]
    lineage = (
        "SELECT model, asset, ordering, parent, technique, step, recipe->>'kind' FROM lineage ORDER BY step"
    )
    assert read(root, lineage) == [
        ("base", "base_model", "base", None, None, 0, "random"),
        ("p", "final_p", "P", "base", "P", 1, None),
    ]


def test_what_a_study_no_longer_lists_is_gone(tmp_path: Path, study: Study, root: Path) -> None:
    for key in ("base", "p", "q"):
        measure(root, f"metrics_{key}", [row("perplexity", 3.0)])
    refresh(study, root)
    assert read(root, "SELECT model FROM leaderboard") == [("base",), ("p",), ("q",)]
    refresh(small_study(tmp_path, "Q"), root)
    assert read(root, "SELECT model FROM leaderboard") == [("base",), ("q",)]
    with pytest.raises(StudyError, match="the query failed"):
        read(root, "SELECT * FROM metrics.p")


def test_tables_of_steps_have_the_types_of_their_rows(study: Study, root: Path) -> None:
    steps = [
        {"step": "p", "value": 1, "note": None, "made_at": CREATED, "many": 3, "good": True},
        {"step": "q", "value": 2.5, "note": "late", "more": {"a": 1}, "many": None, "good": None},
    ]
    write_table(root, "steps", steps)
    refresh(study, root)
    assert read(root, "SELECT step, value, note, many FROM steps") == [
        ("p", 1.0, None, 3),
        ("q", 2.5, "late", None),
    ]
    assert read(root, "SELECT more->>'a' FROM steps") == [(None,), ("1",)]
    types = dict(read(root, "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'steps'"))
    assert types == {
        **{"step": "VARCHAR", "value": "DOUBLE", "note": "VARCHAR", "made_at": "TIMESTAMP WITH TIME ZONE"},
        **{"many": "BIGINT", "good": "BOOLEAN", "more": "JSON"},
    }
    write_table(root, "steps", [{"step": "d", "value": True}])
    refresh(study, root)
    assert read(root, "SELECT * FROM steps") == [("d", True)]
    write_table(root, "steps", [])
    refresh(study, root)
    with pytest.raises(StudyError, match="the query failed"):
        read(root, "SELECT * FROM steps")
    with pytest.raises(ValueError, match="cannot name a table"):
        write_table(root, 'steps"; DROP TABLE models; --', [])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_table(root, "steps", [{"more": {"value": float("nan")}}])


def test_the_test_of_a_judge_that_was_replaced_is_not_shown(tmp_path: Path, root: Path) -> None:
    def judged_by(kind: str) -> Study:
        evaluation = {"perplexity": {"batch_size": 4}, "answers": {}, "judge": {"model": {"kind": kind}}}
        return small_study(tmp_path, "P", evaluation=evaluation)

    study = judged_by("likelihood")
    assert study.evaluation.judge
    found = Calibration(
        "the base model", 2, (Accuracy("g_eval", "all", 4, 4, 0, 1.0, 0.5, 1.0, 0.8, True, ""),)
    )
    recipe = {"judge": study.evaluation.judge.content(), "deepeval": "1"}
    leave(root, "judge_calibration", fill=lambda work: write_calibration(found, work), recipe=recipe)
    refresh(study, root)
    assert read(root, "SELECT judge FROM judge_calibration") == [("the base model",)]
    refresh(judged_by("local"), root)
    assert read(root, "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'judge_calibration'") == [(0,)]


def test_a_damaged_artifact_is_left_out_and_named(study: Study, root: Path) -> None:
    for key in ("base", "p", "q"):
        measure(root, f"metrics_{key}", [row("perplexity", 3.0)])
    (root / "metrics" / "p" / "rows.parquet").write_bytes(b"nothing that Parquet knows")
    (root / "metrics" / "q" / "manifest.json").write_text("{")
    leave(root, "metrics_p_q", {"metrics.json": "{}"})
    assert refresh(study, root) == ""
    assert read(root, "SELECT model FROM leaderboard") == [("base",)]
    reasons = dict(left_out(database_of(root)))
    assert "its manifest says" in reasons["metrics_p"]
    assert "manifest.json cannot be read" in reasons["metrics_q"]
    assert "earlier version" in reasons["metrics_p_q"]


def test_a_query_cannot_write_and_says_what_is_wrong(study: Study, root: Path) -> None:
    assert refresh(study, root) == "" and not root.exists(), "nothing is measured, so there is no database"
    with pytest.raises(StudyError, match="compression run"):
        read(root, "SELECT 1")
    measure(root, "metrics_base", [row("perplexity", 3.0)])
    refresh(study, root)
    with pytest.raises(StudyError, match="the query failed"):
        read(root, "DELETE FROM models")
    with pytest.raises(StudyError, match="the query failed"):
        read(root, "SELECT nothing FROM nowhere")


def test_a_damaged_or_earlier_database_is_derived_anew(study: Study, root: Path) -> None:
    measure(root, "metrics_base", [row("perplexity", 3.0)])
    database_of(root).file.write_bytes(b"nothing that DuckDB knows" * 1000)
    with pytest.raises(StudyError, match="delete it"):
        read(root, "SELECT 1")
    assert refresh(study, root) == ""
    assert read(root, "SELECT perplexity FROM leaderboard") == [(3.0,)]
