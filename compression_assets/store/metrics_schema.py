"""Tables and views of the metrics database. Tables hold every model; a schema has a view of each for one model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

LEADERBOARD_METRICS = (
    *("g_eval", "prompt_alignment", "clarity", "size_mib", "perplexity", "end_of_turn", "compression_ratio"),
    *("exact_match", "f1", "answer_words", "correctness", "relevance", "fluency", "coherence", "readability"),
    *("kl_to_base", "top_1_agreement"),
    *("tokens_per_second", "time_to_first_token", "parameters"),
)
"""Metrics that `leaderboard` always has, each as value, _lo and _hi; NULL where not measured; others follow."""

T_QUANTILES = [
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
]
"""97.5 % quantiles of Student's t with 1 to 30 degrees of freedom; the last serves for more."""

TABLES = """
CREATE TABLE models (model VARCHAR PRIMARY KEY, ordering VARCHAR, position INTEGER, data_version VARCHAR);
CREATE TABLE all_metrics (
    model VARCHAR, metric VARCHAR, value DOUBLE, lo DOUBLE, hi DOUBLE, unit VARCHAR, n BIGINT, n_failed BIGINT,
    higher_is_better BOOLEAN, aggregate VARCHAR, note VARCHAR, part VARCHAR,
    data_version VARCHAR, run_id VARCHAR, measured_at TIMESTAMPTZ);
CREATE TABLE all_samples (
    model VARCHAR, metric VARCHAR, item VARCHAR, value DOUBLE, weight DOUBLE, error VARCHAR, part VARCHAR);
CREATE TABLE lineage (
    model VARCHAR PRIMARY KEY, asset VARCHAR, ordering VARCHAR, parent VARCHAR, technique VARCHAR, step INTEGER,
    recipe JSON, recipe_fingerprint VARCHAR, fingerprint VARCHAR, data_version VARCHAR, seed BIGINT,
    tokens_seen BIGINT, seconds DOUBLE, peak_memory_mib DOUBLE, device VARCHAR, path VARCHAR, created_at TIMESTAMPTZ);
CREATE TABLE serving (
    model VARCHAR PRIMARY KEY, ordering VARCHAR, form VARCHAR, engine VARCHAR, version VARCHAR, device VARCHAR,
    threads INTEGER);
CREATE TABLE left_out (artifact VARCHAR, reason VARCHAR);
CREATE SCHEMA metrics;
CREATE SCHEMA samples;
"""
"""models.data_version is that of the model as it is now, all_metrics.data_version that of the model as it was
measured: a row for which they differ is stale."""

_LEADERBOARD = """
CREATE VIEW leaderboard AS
SELECT models.model, models.ordering, {columns},
       string_agg(metric || ': ' || note, '; ' ORDER BY metric) FILTER (note <> '') AS notes
FROM models JOIN all_metrics USING (model)
GROUP BY models.model, models.ordering, models.position ORDER BY models.position, models.model
"""

_OVER_SEEDS = """
CREATE VIEW leaderboard_seeds AS
SELECT ordering, metric, mean, sd, n, mean - half AS lo, mean + half AS hi FROM (
    SELECT split_part(models.ordering, '@', 1) AS ordering, metric, avg(value) AS mean, stddev_samp(value) AS sd,
           count(value) AS n, min(position) AS position,
           list_extract({quantiles}, least(count(value) - 1, {last})) * stddev_samp(value) / sqrt(count(value)) AS half
    FROM models JOIN all_metrics USING (model) WHERE model NOT IN (SELECT model FROM serving)
    GROUP BY split_part(models.ordering, '@', 1), metric
    HAVING count(value) > 0
) ORDER BY position, metric
"""
"""A row an ordering and metric over seeds: mean, standard deviation, 95 % interval of the mean by Student's t.
It says how much training varies; the intervals of `leaderboard` say how much the items of a measurement do."""


def create_views(db: "duckdb.DuckDBPyConnection", models: Sequence[str]) -> None:
    """metrics.<model> and samples.<model> of each measured model, and the leaderboards over all of them."""
    for model in models:
        for schema in ("metrics", "samples"):
            db.execute(
                f'CREATE VIEW {schema}."{model}" AS '
                f"SELECT * EXCLUDE (model) FROM all_{schema} WHERE model = '{model}'"
            )
    if not models:
        return
    known = {row[0] for row in db.execute("SELECT DISTINCT metric FROM all_metrics").fetchall()}
    columns = ", ".join(
        f"max({source}) FILTER (metric = '{name}') AS \"{name}{suffix}\""
        for name in (*LEADERBOARD_METRICS, *sorted(known - set(LEADERBOARD_METRICS)))
        for source, suffix in (("value", ""), ("lo", "_lo"), ("hi", "_hi"))
    )
    db.execute(_LEADERBOARD.format(columns=columns))
    db.execute(_OVER_SEEDS.format(quantiles=T_QUANTILES, last=len(T_QUANTILES)))
