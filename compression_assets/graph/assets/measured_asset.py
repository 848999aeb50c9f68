"""One way to make the asset of a measurement: measure a model once into an artifact, then copy that into DuckDB."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.graph.assets.artifact import (
    Artifact,
    ArtifactConfig,
    Workplace,
    as_failure,
    make,
    result,
)
from compression_assets.graph.assets.made_on_demand import SideInput, make_missing
from compression_assets.graph.assets.measured import record, write_measured
from compression_assets.graph.assets.priority import FILL, PRIORITY
from compression_assets.graph.resources import Gpu, StudyStorage
from compression_assets.store.reports import StepReport
from compression_assets.study.leaderboard_models import LeaderboardModel
from compression_assets.study.model import Study
from compression_assets.study.names import OWNERS, POOL, relative_directory

Measure = Callable[[Workplace, StudyStorage], tuple[Sequence[MetricRow], Sequence[Sample], StepReport]]


@dataclass(frozen=True)
class Measurement:
    """What sets one kind of measurement of a model apart from the others.

    part: prefix of the asset's key. group: in the UI, and its tag `stage`.
    about: its description, to which the table's name is added.
    measure: writes what it likes into the workplace and returns rows, samples per item and a report.
    side_inputs: made first where they are missing. incomplete: whether a finished measurement has to be made again.
    lineage: rows for the table of that name.
    more: metadata for Dagster from the finished directory, after it was recorded.
    """

    part: str
    group: str
    about: str
    measure: Measure
    kinds: frozenset[str] = frozenset({"duckdb"})
    priority: str = FILL
    pool: str | None = POOL
    side_inputs: tuple[SideInput, ...] = ()
    incomplete: Callable[[StudyStorage], bool] = lambda storage: False
    lineage: Callable[[StudyStorage], Sequence[dict[str, Any]]] = lambda storage: ()
    more: Callable[[StudyStorage, Path], Mapping[str, Any]] = lambda storage, directory: {}


def measured_asset(
    study: Study, entry: LeaderboardModel, artifact: Artifact, measurement: Measurement
) -> dg.AssetsDefinition:
    """The asset `<part>_<model>`."""
    part = measurement.part

    @dg.asset(
        key=artifact.asset,
        deps=list(artifact.inputs),
        group_name=measurement.group,
        description=f"{measurement.about}, in DuckDB table metrics.{entry.key}.",
        kinds=set(measurement.kinds),
        tags={"stage": measurement.group, "ordering": entry.key},
        owners=OWNERS,
        code_version=artifact.code_version,
        check_specs=artifact.check_specs(),
        op_tags={PRIORITY: measurement.priority},
        pool=measurement.pool,
    )
    def measured(
        context: dg.AssetExecutionContext, config: ArtifactConfig, storage: StudyStorage, gpu: Gpu
    ) -> dg.MaterializeResult:
        def build(place: Workplace) -> StepReport:
            rows, samples, report = measurement.measure(place, storage)
            write_measured(place.output, rows, samples, context.run_id)
            return report

        make_missing(measurement.side_inputs, context, storage, gpu)
        again = config.rebuild or measurement.incomplete(storage)
        manifest, cached = make(context, artifact, build, storage, gpu, again)
        directory = storage.artifacts.root / relative_directory(artifact.asset)
        with as_failure(artifact.asset):
            shown = record(study, storage, entry, part, manifest, measurement.lineage(storage))
            shown |= measurement.more(storage, directory)
        return result(manifest, cached, directory, **shown)

    return measured
