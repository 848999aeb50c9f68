"""The metrics database with a real DuckDB file."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compression_assets.errors import StudyError
from compression_assets.resources.metrics_db import LEADERBOARD_METRICS, MetricsDatabase

WHEN = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def database(tmp_path: Path) -> MetricsDatabase:
    return MetricsDatabase(tmp_path / "study" / "compression.duckdb", patience=1.0)


def rows(**values: float | None) -> list[dict[str, Any]]:
    about = {
        "unit": "1",
        "n": 7,
        "higher_is_better": False,
        "data_version": "v",
        "run_id": "r",
        "measured_at": WHEN,
    }
    return [{"metric": metric, "value": value, **about} for metric, value in values.items()]


def samples() -> list[dict[str, Any]]:
    return [{"metric": "perplexity", "item": item, "value": 2.5, "weight": 3} for item in ("a", "b")]


def test_the_leaderboard_fills_model_by_model_in_the_studys_order(database: MetricsDatabase) -> None:
    database.write_model("p_kd_q", "P-KD-Q", 2, rows(perplexity=5.0, size_mib=10.0), samples(), [])
    database.write_model("base", "base", 0, rows(perplexity=3.0, size_mib=40.0), [], [])
    columns, found = database.query("SELECT * FROM leaderboard")
    assert columns == ["model", "ordering", *LEADERBOARD_METRICS]
    assert [row[:2] for row in found] == [("base", "base"), ("p_kd_q", "P-KD-Q")]
    record = dict(zip(columns, found[1], strict=True))
    assert (record["perplexity"], record["size_mib"], record["g_eval"]) == (5.0, 10.0, None)


def test_a_model_measured_again_replaces_its_rows(database: MetricsDatabase) -> None:
    database.write_model("base", "base", 0, rows(perplexity=3.0, old=1.0), samples(), [])
    database.write_model("base", "base", 0, rows(perplexity=4.0), samples()[:1], [])
    assert database.query("SELECT metric, value, n FROM metrics.base")[1] == [("perplexity", 4.0, 7)]
    assert database.query("SELECT item FROM samples.base")[1] == [("a",)]


def test_models_that_a_study_dropped_leave_the_leaderboard(database: MetricsDatabase) -> None:
    for position, key in enumerate(("base", "p", "q")):
        database.write_model(key, key, position, rows(perplexity=3.0), [], [])
    database.keep_models(["base", "q"], ["base", "q", "q_d"])
    assert [row[0] for row in database.query("SELECT model FROM leaderboard")[1]] == ["base", "q"]
    with pytest.raises(StudyError, match="the query failed"):
        database.query("SELECT * FROM metrics.p")


def test_an_error_in_a_write_changes_nothing(database: MetricsDatabase) -> None:
    database.write_model("base", "base", 0, rows(perplexity=3.0), [], [])
    broken = [*rows(perplexity=9.0), {**rows(size_mib=1.0)[0], "n": "not a number"}]
    with pytest.raises(Exception, match="not a number"):
        database.write_model("base", "base", 0, broken, [], [])
    assert database.query("SELECT value FROM metrics.base")[1] == [(3.0,)]


def test_a_query_cannot_write_and_says_what_is_wrong(database: MetricsDatabase) -> None:
    with pytest.raises(StudyError, match="make demo"):
        database.query("SELECT 1")
    database.write_model("base", "base", 0, rows(perplexity=3.0), [], [])
    with pytest.raises(StudyError, match="the query failed"):
        database.query("DELETE FROM models")
    with pytest.raises(StudyError, match="the query failed"):
        database.query("SELECT nothing FROM nowhere")


def test_a_writer_waits_for_another_process_and_then_names_it(database: MetricsDatabase) -> None:
    database.write_model("base", "base", 0, rows(perplexity=3.0), [], [])
    hold = f"import duckdb; db = duckdb.connect({str(database.file)!r}); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "open\n"
        with pytest.raises(StudyError, match=rf"held open by another process.*{holder.pid}"):
            database.write_model("base", "base", 0, rows(perplexity=4.0), [], [])
        holder.communicate("\n")
    database.write_model("base", "base", 0, rows(perplexity=4.0), [], [])
    assert database.query("SELECT value FROM metrics.base")[1] == [(4.0,)]
