"""The one builder of assets that leave an artifact: what Dagster sees of it, and the step that makes it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg

from compression_assets.graph.assets.artifact import Artifact
from compression_assets.graph.assets.code_references import code_references
from compression_assets.graph.assets.making import Step, as_failure, key_of
from compression_assets.graph.cluster.reservations import reservation
from compression_assets.graph.resources import Gpu, StudyStorage, gpu_key, storage_key
from compression_assets.reporting.database import refresh
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.reports import Check
from compression_assets.study.model import Study
from compression_assets.study.names import OWNERS, POOL, relative_directory

Metadata = Callable[[Manifest, StudyStorage], Mapping[str, Any]]


class ArtifactConfig(dg.Config):
    """Operational knobs; scientific settings live in the study file."""

    rebuild: bool = False


@dataclass(frozen=True)
class Shown:
    """An artifact as Dagster shows it. metadata: what the UI shows of a finished one beside what all have.

    more_checks: integrity checks, by name, that are made of the finished artifact's manifest.
    """

    artifact: Artifact
    group: str
    description: str
    kinds: frozenset[str]
    tags: Mapping[str, str]
    metadata: Metadata = lambda manifest, storage: {}
    more_checks: Mapping[str, Callable[[Manifest], Check]] | None = None

    def spec(self) -> dg.AssetSpec:
        return dg.AssetSpec(
            self.artifact.asset,
            deps=[*self.artifact.inputs, *self.artifact.upstream],
            group_name=self.group,
            description=self.description,
            kinds=set(self.kinds),
            tags=self.tags,
            owners=OWNERS,
            code_version=self.artifact.code_version,
            metadata=code_references(self.artifact.build, self.artifact.code),
        )

    def check_specs(self) -> list[dg.AssetCheckSpec]:
        asset = self.artifact.asset
        blocking = (*self.artifact.checks, *(self.more_checks or {}))
        return [
            *(dg.AssetCheckSpec(name, asset=asset, blocking=True) for name in blocking),
            *(dg.AssetCheckSpec(name, asset=asset) for name in self.artifact.warnings),
        ]


def artifact_asset(
    study: Study,
    *shown: Shown,
    name: str | None = None,
    pool: str | None = POOL,
    priority: Mapping[str, str] | None = None,
    on_demand: tuple[Artifact, ...] = (),
    recorded: bool = False,
) -> dg.AssetsDefinition:
    """The asset of an artifact, or those of several that one step makes.

    name: of the step, by default the asset's. on_demand: made first where they are missing. recorded: the study's
    database has rows of it.
    """
    first = shown[0].artifact

    @dg.multi_asset(
        name=name or first.asset,
        specs=[one.spec() for one in shown],
        check_specs=[spec for one in shown for spec in one.check_specs()],
        can_subset=len(shown) > 1,
        pool=pool,
        op_tags={**(priority or {}), **reservation(study, first.asset, first.needed_gpus)},
        required_resource_keys={gpu_key(study), storage_key(study)},
    )
    def step(context: dg.AssetExecutionContext, config: ArtifactConfig) -> Iterator[dg.MaterializeResult]:
        gpu: Gpu = getattr(context.resources, gpu_key(study))
        storage: StudyStorage = getattr(context.resources, storage_key(study))
        working = Step(context, storage, gpu)
        for one in shown:
            asset = one.artifact.asset
            if key_of(context, asset) not in context.selected_asset_keys:
                continue
            for other in on_demand:
                working.make_if_missing(other, asset)
            manifest, cached = working.make(one.artifact, config.rebuild)
            with as_failure(asset):
                behind = refresh(study, storage.artifacts.root) if recorded else ""
                done = _result(context, one, manifest, cached, storage, behind)
            yield done

    return step


def _result(
    context: dg.AssetExecutionContext,
    shown: Shown,
    manifest: Manifest,
    cached: bool,
    storage: StudyStorage,
    behind: str,
) -> dg.MaterializeResult:
    """The materialisation of an artifact. behind: why the database does not have it yet, or ""."""
    key = key_of(context, manifest.asset)
    made = [check(manifest) for check in (shown.more_checks or {}).values()]
    checks = [
        dg.AssetCheckResult(
            asset_key=key,
            check_name=check["name"],
            passed=check["passed"],
            severity=dg.AssetCheckSeverity.ERROR if check["blocking"] else dg.AssetCheckSeverity.WARN,
            metadata={"detail": dg.MetadataValue.text(check["detail"])},
        )
        for check in [*manifest.checks, *map(asdict, made)]
    ]
    store = storage.artifacts
    where = store.location(store.root / relative_directory(manifest.asset))
    return dg.MaterializeResult(
        asset_key=key,
        data_version=dg.DataVersion(manifest.data_version),
        check_results=checks,
        metadata={
            "path": dg.MetadataValue.path(where),
            **shown.metadata(manifest, storage),
            **({"database_is_behind": behind} if behind else {}),
            "directory_mib": round(manifest.total_bytes / 2**20, 2),
            **(
                {"parent": dg.MetadataValue.asset(key_of(context, manifest.parent))}
                if manifest.parent
                else {}
            ),
            "seconds": round(manifest.seconds, 1),
            "peak_memory_mib": round(manifest.peak_memory_bytes / 2**20),
            "tokens_seen": manifest.tokens_seen,
            "device": manifest.device or "",
            "cached": cached,
            "made_at": manifest.created_at,
            "fingerprint": manifest.fingerprint,
        },
    )
