"""One definition for every asset that is a model directory: base, teacher and the nodes of the prefix tree."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from compression_assets.graph.assets.artifact import Artifact, ArtifactConfig, Workplace, make, result
from compression_assets.graph.resources.gpu import Gpu
from compression_assets.graph.resources.storage import StudyStorage
from compression_assets.reporting.sparkline import loss_picture
from compression_assets.sources.models import ModelSource
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.reports import Check, StepReport
from compression_assets.study.names import OWNERS, POOL, relative_directory

SHOWN_ROWS = 60
COMPLETE = "manifest_complete"
REQUIRED = (
    *("fingerprint", "data_version", "created_at", "recipe", "recipe_fingerprint", "libraries"),
    *("device", "seconds", "peak_memory_bytes"),
)


def model_asset(
    artifact: Artifact,
    build: Callable[[Workplace, StudyStorage], StepReport],
    *,
    group: str,
    description: str,
    tags: dict[str, str],
    kind: str = "huggingface",
    priority: dict[str, str] | None = None,
) -> dg.AssetsDefinition:
    """An asset that leaves a model directory, written by `build`. kind: the library of its number format."""

    @dg.asset(
        key=artifact.asset,
        deps=list(artifact.inputs),
        group_name=group,
        description=description,
        kinds={"pytorch", kind},
        tags=tags,
        owners=OWNERS,
        pool=POOL,
        op_tags=priority,
        code_version=artifact.code_version,
        check_specs=[
            *artifact.check_specs(),
            dg.AssetCheckSpec(COMPLETE, asset=artifact.asset, blocking=True),
        ],
    )
    def model(
        context: dg.AssetExecutionContext, config: ArtifactConfig, storage: StudyStorage, gpu: Gpu
    ) -> dg.MaterializeResult:
        def build_here(place: Workplace) -> StepReport:
            return build(place, storage)

        manifest, cached = make(context, artifact, build_here, storage, gpu, config.rebuild)
        directory = storage.artifacts.root / relative_directory(artifact.asset)
        return result(manifest, cached, directory, [_completeness(manifest)], **model_metadata(manifest))

    return model


def released_model_asset(
    asset: str, source: ModelSource, *, group: str, description: str, tags: dict[str, str]
) -> dg.AssetsDefinition:
    """A model as somebody released it, written as a bfloat16 model directory."""
    artifact = Artifact(
        asset=asset,
        settings=source.model_dump(mode="json"),
        code="compression_assets.sources.models",
        checks=("weights_finite", "size_as_asked"),
        sources=(source,),
    )

    def build(place: Workplace, storage: StudyStorage) -> StepReport:
        from compression_assets.sources.models import fetch_model
        from compression_assets.weights.checkpoints import check_finite, check_size

        metadata = fetch_model(source, place.output, storage.downloads)
        return StepReport(checks=(check_finite(place.output), check_size(place.output)), metadata=metadata)

    return model_asset(artifact, build, group=group, description=description, tags=tags)


def _completeness(manifest: Manifest) -> Check:
    absent = [name for name in REQUIRED if getattr(manifest, name) in (None, "")]
    absent += [] if manifest.weight_bytes else ["weights"]
    return Check(COMPLETE, not absent, f"absent: {', '.join(absent)}" if absent else "everything is recorded")


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """Parent, recipe, loss curve and per-layer figures of a model, as Dagster metadata."""
    shown: dict[str, Any] = {
        "recipe": dg.MetadataValue.json(dict(manifest.recipe)),
        "size_mib": round(manifest.weight_bytes / 2**20, 2),
    }
    model = relative_directory(manifest.asset).name
    shown["sql"] = dg.MetadataValue.md(f"`SELECT * FROM lineage WHERE model = '{model}'`")
    if curve := manifest.metadata.get("loss_curve"):
        shown["loss"] = dg.MetadataValue.md(loss_picture(curve))
    if manifest.seed is not None:
        shown["seed"] = manifest.seed
    if manifest.parent:
        shown["parent"] = dg.MetadataValue.asset(dg.AssetKey(manifest.parent))
    for name, value in manifest.metadata.items():
        if name in ("loss_curve", "layers"):
            if value:
                shown[name] = _table(value)
        elif isinstance(value, str | int | float | bool):
            shown[name] = value
        elif value is not None:
            shown[name] = dg.MetadataValue.json(value)
    return shown


def _table(rows: list[dict[str, Any]]) -> dg.MetadataValue[Any]:
    """At most SHOWN_ROWS evenly spaced rows: metadata lives in the event log, the manifest has them all."""
    step = -(-len(rows) // SHOWN_ROWS)
    kept = rows[::step] if (len(rows) - 1) % step == 0 else [*rows[::step], rows[-1]]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in kept])
