"""The metrics database with a real DuckDB file: what is written, what is replaced, what an older file becomes."""

from pathlib import Path
from typing import Any

import duckdb
import pytest

from compression_assets.errors import StudyError
from compression_assets.store.metrics_db import LEADERBOARD_METRICS, Merged, MetricsDatabase

WHEN = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def database(tmp_path: Path) -> MetricsDatabase:
    return MetricsDatabase(tmp_path / "study" / "compression.duckdb", patience=1.0)


def rows(**values: float | None) -> list[dict[str, Any]]:
    about = {
        "lo": 1.5,
        "hi": 2.5,
        "unit": "1",
        "n": 7,
        "n_failed": 0,
        "higher_is_better": False,
        "aggregate": "mean",
        "note": "",
        "data_version": "v",
        "run_id": "r",
        "measured_at": WHEN,
    }
    return [{"metric": metric, "value": value, **about} for metric, value in values.items()]


def samples(metric: str = "perplexity") -> list[dict[str, Any]]:
    return [{"metric": metric, "item": item, "value": 2.5, "weight": 3, "error": ""} for item in ("a", "b")]


def write(database: MetricsDatabase, key: str, position: int, part: str = "metrics", **values: Any) -> Merged:
    return database.write_part(key, key.upper(), position, part, rows(**values), samples(f"{part}_items"))


def test_the_leaderboard_fills_part_by_part_in_the_studys_order(database: MetricsDatabase) -> None:
    write(database, "p_q", 2, "quality", f1=0.5)
    columns, found = database.query("SELECT * FROM leaderboard")
    expected = [name + suffix for name in LEADERBOARD_METRICS for suffix in ("", "_lo", "_hi")]
    assert columns == ["model", "ordering", *expected, "notes"]
    assert database.query("SELECT model, f1, perplexity FROM leaderboard")[1] == [("p_q", 0.5, None)]
    write(database, "base", 0, perplexity=3.0, size_mib=40.0)
    write(database, "p_q", 2, perplexity=5.0)
    columns, found = database.query("SELECT * FROM leaderboard")
    assert [row[:2] for row in found] == [("base", "BASE"), ("p_q", "P_Q")]
    record = dict(zip(columns, found[1], strict=True))
    assert (record["perplexity"], record["f1"], record["g_eval"]) == (5.0, 0.5, None)
    assert (record["f1_lo"], record["f1_hi"]) == (1.5, 2.5)


def test_a_metric_that_nobody_foresaw_gets_its_columns(database: MetricsDatabase) -> None:
    write(database, "base", 0, "harness", arc_easy_acc=0.25)
    assert database.query("SELECT arc_easy_acc, arc_easy_acc_lo FROM leaderboard")[1] == [(0.25, 1.5)]


def test_a_part_measured_again_replaces_its_own_rows_only(database: MetricsDatabase) -> None:
    write(database, "base", 0, perplexity=3.0, old=1.0)
    write(database, "base", 0, "quality", f1=0.5)
    write(database, "base", 0, perplexity=4.0)
    found = database.query("SELECT part, metric, value, n FROM metrics.base ORDER BY metric")[1]
    assert found == [("quality", "f1", 0.5, 7), ("metrics", "perplexity", 4.0, 7)]
    assert database.query("SELECT part, count(*), sum(weight) FROM samples.base GROUP BY part ORDER BY 1")[
        1
    ] == [
        ("metrics", 2, 6.0),
        ("quality", 2, 6.0),
    ]


def test_models_that_a_study_dropped_leave_the_leaderboard(database: MetricsDatabase) -> None:
    for position, key in enumerate(("base", "p", "q")):
        write(database, key, position, perplexity=3.0)
    database.keep_models(["base", "q"], ["base", "q", "q_d"])
    assert [row[0] for row in database.query("SELECT model FROM leaderboard")[1]] == ["base", "q"]
    with pytest.raises(StudyError, match="the query failed"):
        database.query("SELECT * FROM metrics.p")


def test_other_tables_are_made_as_their_rows_need_them(database: MetricsDatabase) -> None:
    def table(sql: str = "SELECT * FROM steps ORDER BY step, value") -> list[tuple[Any, ...]]:
        return database.query(sql)[1]

    database.write_table("steps", [], ["step"])
    database.write_table("steps", [{"step": "p", "value": 1, "note": None, "made_at": WHEN}], ["step"])
    database.write_table("steps", [{"step": "q", "value": 2.5, "note": "late", "more": {"a": 1}}], ["step"])
    assert [row[:3] for row in table()] == [("p", 1.0, None), ("q", 2.5, "late")]
    assert dict(table("SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'steps'")) == {
        **{"step": "VARCHAR", "value": "DOUBLE", "note": "VARCHAR", "made_at": "TIMESTAMP WITH TIME ZONE"},
        "more": "JSON",
    }
    # All rows of a step are replaced, however many there were.
    database.write_table("steps", [{"step": "p", "value": 7}, {"step": "p", "value": 8}], ["step"])
    database.write_table("steps", [{"step": "p", "value": 9}], ["step"])
    assert [row[:2] for row in table()] == [("p", 9.0), ("q", 2.5)]
    database.write_table("steps", [{"step": "d", "value": True}])
    assert [row[:2] for row in table()] == [("d", 1.0)]
    with pytest.raises(ValueError, match="cannot name a table"):
        database.write_table('steps"; DROP TABLE models; --', [])


def test_a_refused_write_changes_nothing_and_stops_nobody(database: MetricsDatabase) -> None:
    write(database, "base", 0, perplexity=3.0)
    broken = [*rows(perplexity=9.0), {**rows(size_mib=1.0)[0], "n": "not a number"}]
    with pytest.raises(ValueError, match="refused"):
        database.write_part("base", "base", 0, "metrics", broken, [])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(database, "base", 0, perplexity=float("nan"))
    assert database.query("SELECT value FROM metrics.base")[1] == [(3.0,)]
    assert len(database.outbox.rejected()) == 1
    assert write(database, "p", 1, perplexity=4.0) == Merged(applied=1, waiting=0)


def test_a_query_cannot_write_and_says_what_is_wrong(database: MetricsDatabase) -> None:
    with pytest.raises(StudyError, match="make demo"):
        database.query("SELECT 1")
    write(database, "base", 0, perplexity=3.0)
    with pytest.raises(StudyError, match="the query failed"):
        database.query("DELETE FROM models")
    with pytest.raises(StudyError, match="the query failed"):
        database.query("SELECT nothing FROM nowhere")


def test_a_database_of_the_first_version_is_brought_up_to_date(database: MetricsDatabase) -> None:
    database.file.parent.mkdir()
    with duckdb.connect(str(database.file)) as db:
        db.execute("CREATE SCHEMA metrics; CREATE SCHEMA samples")
        db.execute("CREATE TABLE models (model VARCHAR PRIMARY KEY, ordering VARCHAR, position INTEGER)")
        db.execute("INSERT INTO models VALUES ('q', 'Q', 1)")
        db.execute(
            "CREATE TABLE metrics.q (metric VARCHAR PRIMARY KEY, value DOUBLE, unit VARCHAR, n BIGINT, "
            "higher_is_better BOOLEAN, data_version VARCHAR, run_id VARCHAR, measured_at TIMESTAMPTZ)"
        )
        db.execute("INSERT INTO metrics.q VALUES ('perplexity', 5, '1', 9, false, 'v', 'r', now())")
        db.execute(
            "CREATE TABLE samples.q (metric VARCHAR, item VARCHAR, value DOUBLE, weight BIGINT, "
            "PRIMARY KEY (metric, item))"
        )
        db.execute("INSERT INTO samples.q VALUES ('perplexity', 'a', 4, 9)")
        db.execute("CREATE VIEW leaderboard AS SELECT 'old' AS model")
    write(database, "base", 0, perplexity=3.0)
    found = database.query("SELECT model, perplexity, perplexity_hi FROM leaderboard")[1]
    assert found == [("base", 3.0, 2.5), ("q", 5.0, None)]
    assert database.query("SELECT item, weight, part FROM samples.q")[1] == [("a", 9.0, "metrics")]
    assert database.query("SELECT version FROM schema_version")[1] == [(2,)]


def test_a_database_of_a_later_version_is_left_alone(database: MetricsDatabase) -> None:
    write(database, "base", 0, perplexity=3.0)
    with duckdb.connect(str(database.file)) as db:
        db.execute("INSERT INTO schema_version VALUES (99, now())")
    with pytest.raises(StudyError, match="schema version 99"):
        write(database, "base", 0, perplexity=4.0)
    assert len(database.outbox.waiting()) == 1
    assert database.query("SELECT value FROM metrics.base")[1] == [(3.0,)]


def test_a_damaged_database_is_named_with_what_to_do(database: MetricsDatabase) -> None:
    database.file.parent.mkdir()
    database.file.write_bytes(b"nothing that DuckDB knows" * 1000)
    with pytest.raises(StudyError, match="delete it and run the study again"):
        write(database, "base", 0, perplexity=4.0)
    database.file.unlink()
    assert database.merge().applied == 1
