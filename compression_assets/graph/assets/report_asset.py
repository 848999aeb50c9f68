"""The one builder of assets that are made anew in every run from what others left: tables, and the report."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from compression_assets.graph.assets.code_references import code_references
from compression_assets.graph.assets.making import tracked
from compression_assets.graph.cluster.reservations import reservation
from compression_assets.graph.resources import StudyStorage, storage_key
from compression_assets.reporting.database import refresh
from compression_assets.study.model import Study
from compression_assets.study.names import OWNERS


class NoConfig(dg.Config):
    """For what has nothing to configure."""


@dataclass(frozen=True)
class Outcome:
    """What such an asset shows. note, cached: for the line that the terminal prints of it."""

    metadata: Mapping[str, Any]
    checks: tuple[dg.AssetCheckResult, ...] = ()
    note: str = ""
    cached: bool = False


Compute = Callable[[StudyStorage, Any], Outcome]
"""Called with the study's storage and the asset's configuration."""


def report_asset(
    study: Study,
    key: str,
    compute: Compute,
    *,
    description: str,
    deps: Iterable[str | dg.AssetKey] = (),
    kinds: frozenset[str] = frozenset({"duckdb"}),
    checks: tuple[str, ...] = (),
    priority: Mapping[str, str] | None = None,
    config: type[dg.Config] = NoConfig,
) -> dg.AssetsDefinition:
    """An asset of the group `report`. Tables that `compute` writes are in the database when it ends."""

    @dg.asset(
        key=key,
        deps=list(deps),
        group_name="report",
        description=description,
        kinds=set(kinds),
        tags={"stage": "report"},
        owners=OWNERS,
        check_specs=[dg.AssetCheckSpec(name, asset=key) for name in checks],
        op_tags={**(priority or {}), **reservation(study, key)},
        metadata=code_references(compute),
        required_resource_keys={storage_key(study)},
    )
    def step(
        context: dg.AssetExecutionContext,
        config: config,  # type: ignore[valid-type]
    ) -> dg.MaterializeResult:
        storage: StudyStorage = getattr(context.resources, storage_key(study))
        with tracked(context, storage, key) as shown:
            outcome = compute(storage, config)
            behind = refresh(study, storage.artifacts.root)
            shown.update(cached=outcome.cached, note=outcome.note)
        more = {"database_is_behind": behind} if behind else {}
        return dg.MaterializeResult(metadata={**outcome.metadata, **more}, check_results=list(outcome.checks))

    return step


def warning(name: str, passed: bool, detail: str) -> dg.AssetCheckResult:
    """The result of a quality check."""
    return dg.AssetCheckResult(
        check_name=name,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"detail": dg.MetadataValue.text(detail)},
    )
