"""What the metrics database holds: tables, the view over them, and how an older file becomes a current one."""

from typing import TYPE_CHECKING

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    import duckdb

VERSION = 2
"""Of the tables. 1 had no intervals, no parts, and one way to write."""

LEADERBOARD_METRICS = (
    *("g_eval", "prompt_alignment", "clarity", "size_mib", "perplexity", "end_of_turn", "compression_ratio"),
    *("exact_match", "f1", "answer_words", "correctness", "relevance", "fluency", "coherence", "readability"),
    *("tokens_per_second", "time_to_first_token", "parameters"),
)
"""Metrics that `leaderboard` always has, each as value, _lo and _hi; NULL where not measured; others follow."""

METRICS_TABLE = """
CREATE TABLE IF NOT EXISTS metrics."{key}" (
    metric VARCHAR PRIMARY KEY, value DOUBLE, lo DOUBLE, hi DOUBLE, unit VARCHAR, n BIGINT, n_failed BIGINT,
    higher_is_better BOOLEAN, aggregate VARCHAR, note VARCHAR, part VARCHAR,
    data_version VARCHAR, run_id VARCHAR, measured_at TIMESTAMPTZ)
"""

SAMPLES_TABLE = """
CREATE TABLE IF NOT EXISTS samples."{key}" (
    metric VARCHAR, item VARCHAR, value DOUBLE, weight DOUBLE, error VARCHAR, part VARCHAR,
    PRIMARY KEY (metric, item))
"""

T_QUANTILES = (
    *(
        12.706,
        4.303,
        3.182,
        2.776,
        2.571,
        2.447,
        2.365,
        2.306,
        2.262,
        2.228,
        2.201,
        2.179,
        2.160,
        2.145,
        2.131,
    ),
    *(
        2.120,
        2.110,
        2.101,
        2.093,
        2.086,
        2.080,
        2.074,
        2.069,
        2.064,
        2.060,
        2.056,
        2.052,
        2.048,
        2.045,
        2.042,
    ),
)
"""97.5 % quantiles of Student's t with 1 to 30 degrees of freedom; the last serves for more."""

_OVER_SEEDS = """
CREATE OR REPLACE VIEW leaderboard_seeds AS
SELECT ordering, metric, mean, sd, n, mean - half AS lo, mean + half AS hi FROM (
    SELECT split_part(models.ordering, '@', 1) AS ordering, metric, avg(value) AS mean, stddev_samp(value) AS sd,
           count(value) AS n, min(position) AS position,
           list_extract({quantiles}, least(count(value) - 1, {last})) * stddev_samp(value) / sqrt(count(value)) AS half
    FROM models JOIN ({measured}) AS measured USING (model) GROUP BY split_part(models.ordering, '@', 1), metric
    HAVING count(value) > 0
) ORDER BY position, metric
"""
"""A row an ordering and metric over seeds: mean, standard deviation, 95 % interval of the mean by Student's t.
It says how much training varies; the intervals of `leaderboard` say how much the items of a measurement do."""

_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS metrics;
CREATE SCHEMA IF NOT EXISTS samples;
CREATE TABLE IF NOT EXISTS schema_version (version INTEGER, since TIMESTAMPTZ);
CREATE TABLE IF NOT EXISTS applied_writes (id VARCHAR PRIMARY KEY, applied_at TIMESTAMPTZ);
CREATE TABLE IF NOT EXISTS models (model VARCHAR PRIMARY KEY, ordering VARCHAR, position INTEGER);
CREATE TABLE IF NOT EXISTS lineage (
    model VARCHAR PRIMARY KEY, asset VARCHAR, ordering VARCHAR, parent VARCHAR, technique VARCHAR, step INTEGER,
    recipe JSON, recipe_fingerprint VARCHAR, fingerprint VARCHAR, data_version VARCHAR, seed BIGINT,
    tokens_seen BIGINT, seconds DOUBLE, peak_memory_mib DOUBLE, device VARCHAR, path VARCHAR, created_at TIMESTAMPTZ);
CREATE TABLE IF NOT EXISTS paper_table_1 (
    model VARCHAR PRIMARY KEY, g_eval DOUBLE, prompt_alignment DOUBLE, clarity DOUBLE, size_mib DOUBLE,
    perplexity DOUBLE);
"""


def prepare(db: "duckdb.DuckDBPyConnection") -> None:
    """Make an empty database, or bring one of an older version up to date, inside the caller's transaction.

    Raises StudyError for a database that a newer version of this package wrote.
    """
    found = version(db)
    if found > VERSION:
        raise StudyError(
            f"the database has schema version {found}, and this package knows {VERSION}: use a newer compression_assets"
        )
    db.execute(_SCHEMA)
    if found == 1:
        _add_parts(db)
    if found < VERSION:
        db.execute("INSERT INTO schema_version VALUES (?, now())", [VERSION])
        create_leaderboard(db)


def version(db: "duckdb.DuckDBPyConnection") -> int:
    """0 for an empty database."""
    tables = {row[0] for row in db.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if "schema_version" in tables:
        (found,) = db.execute("SELECT max(version) FROM schema_version").fetchall()[0]
        return int(found or 0)
    return 1 if "models" in tables else 0


def _add_parts(db: "duckdb.DuckDBPyConnection") -> None:
    """1 -> 2. A primary key cannot be added to a table, so rows move into new ones."""
    db.execute("DROP VIEW IF EXISTS leaderboard")
    for key in _model_keys(db):
        for schema, table in (("metrics", METRICS_TABLE), ("samples", SAMPLES_TABLE)):
            db.execute(f'CREATE TEMP TABLE moved AS SELECT * FROM {schema}."{key}"')
            db.execute(f'DROP TABLE {schema}."{key}"')
            db.execute(table.format(key=key))
            db.execute(f"INSERT INTO {schema}.\"{key}\" BY NAME SELECT *, 'metrics' AS part FROM moved")
            db.execute("DROP TABLE moved")


def create_leaderboard(db: "duckdb.DuckDBPyConnection") -> None:
    """One row a model that has any metric; the view is made anew because it names every table in `metrics`."""
    keys = _model_keys(db)
    if not keys:
        db.execute("DROP VIEW IF EXISTS leaderboard")
        db.execute("DROP VIEW IF EXISTS leaderboard_seeds")
        return
    measured = " UNION ALL ".join(
        f"SELECT '{key}' AS model, metric, value, lo, hi, note FROM metrics.\"{key}\"" for key in keys
    )
    known = {row[0] for row in db.execute(f"SELECT DISTINCT metric FROM ({measured})").fetchall()}
    columns = ", ".join(
        f"max({source}) FILTER (metric = '{name}') AS \"{name}{suffix}\""
        for name in (*LEADERBOARD_METRICS, *sorted(known - set(LEADERBOARD_METRICS)))
        for source, suffix in (("value", ""), ("lo", "_lo"), ("hi", "_hi"))
    )
    db.execute(
        f"CREATE OR REPLACE VIEW leaderboard AS SELECT models.model, models.ordering, {columns}, "
        "string_agg(metric || ': ' || note, '; ' ORDER BY metric) FILTER (note <> '') AS notes "
        f"FROM models JOIN ({measured}) AS measured USING (model) "
        "GROUP BY models.model, models.ordering, models.position ORDER BY models.position, models.model"
    )
    db.execute(_OVER_SEEDS.format(measured=measured, quantiles=list(T_QUANTILES), last=len(T_QUANTILES)))


def _model_keys(db: "duckdb.DuckDBPyConnection") -> list[str]:
    return [row[0] for row in db.execute("SELECT model FROM models ORDER BY position, model").fetchall()]
