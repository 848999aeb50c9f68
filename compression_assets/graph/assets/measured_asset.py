"""The asset `<part>_<key>` of a measurement of a leaderboard's model: rows and samples as Parquet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import dagster as dg

from compression_assets.evaluation.measured import read_rows, rows_with_intervals, write_measured
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.graph.assets.artifact import Artifact, Build, BuildContext
from compression_assets.graph.assets.artifact_asset import Metadata, Shown, artifact_asset
from compression_assets.graph.assets.priority import FILL, PRIORITY
from compression_assets.graph.resources import StudyStorage
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.reports import StepReport
from compression_assets.study.leaderboard_models import LeaderboardModel
from compression_assets.study.model import Study
from compression_assets.study.names import POOL
from compression_assets.tables import markdown

WRITER = "compression_assets.evaluation.measured:write_measured"

Measure = Callable[[BuildContext], tuple[Sequence[MetricRow], Sequence[Sample], StepReport]]


def measurement(
    model: LeaderboardModel, part: str, measure: Measure, *, code: tuple[str, ...], **about: Any
) -> Artifact:
    """The artifact of a measurement. part: prefix of its key. code: what measures, as in Artifact.

    measure: returns rows, samples by item and a report, and may write more into its context's output.
    about: further fields of Artifact.
    """
    return Artifact(
        asset=model.asset(part),
        build=_writing(measure),
        code=(*code, WRITER),
        parent=model.model,
        path=model.path,
        **about,
    )


def measured_asset(
    study: Study,
    model: LeaderboardModel,
    artifact: Artifact,
    *,
    group: str,
    about: str,
    kinds: frozenset[str] = frozenset({"duckdb"}),
    priority: str = FILL,
    pool: str | None = POOL,
    on_demand: tuple[Artifact, ...] = (),
    metadata: Metadata = lambda manifest, storage: {},
) -> dg.AssetsDefinition:
    """group: in the UI, and its tag `stage`. about: its description, to which the table's name is added.

    metadata: shown beside the figures, which every measurement has.
    """

    def shown(manifest: Manifest, storage: StudyStorage) -> Mapping[str, Any]:
        return {**_figures(study, model, manifest, storage), **metadata(manifest, storage)}

    return artifact_asset(
        study,
        Shown(
            artifact,
            group=group,
            description=f"{about}, in DuckDB table metrics.{model.key}.",
            kinds=kinds,
            tags={"stage": group, "ordering": model.key},
            metadata=shown,
        ),
        priority={PRIORITY: priority},
        pool=pool,
        on_demand=on_demand,
        recorded=True,
    )


def _writing(measure: Measure) -> Build:
    @wraps(measure)
    def build(place: BuildContext) -> StepReport:
        rows, samples, report = measure(place)
        write_measured(place.output, rows, samples)
        return replace(report, metadata={**report.metadata, "run_id": place.run_id})

    return build


def _figures(
    study: Study, model: LeaderboardModel, manifest: Manifest, storage: StudyStorage
) -> dict[str, Any]:
    root, directory = storage.artifacts.root, storage.local(manifest.asset)
    settings = study.evaluation.statistics
    rows = read_rows(
        rows_with_intervals(root, manifest.asset, directory, manifest.data_version, settings, study.seed)
    )
    columns = ("metric", "value", "lo", "hi", "unit", "n", "n_failed", "note")
    table = markdown(columns, [[getattr(row, name) for name in columns] for row in rows])
    return {
        "figures": dg.MetadataValue.md(table),
        **{row.metric: row.value for row in rows},
        **{f"{row.metric}_note": row.note for row in rows if row.note},
        "sql": dg.MetadataValue.md(f"`SELECT * FROM metrics.{model.key}`"),
    }
