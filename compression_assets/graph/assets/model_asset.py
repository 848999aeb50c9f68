"""Every asset that is a model directory: base, teacher and the nodes of the prefix tree."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from compression_assets.graph.assets.artifact import Artifact, BuildContext
from compression_assets.graph.assets.artifact_asset import Shown, artifact_asset
from compression_assets.reporting.sparkline import loss_picture
from compression_assets.sources.models import ModelSource
from compression_assets.store.artifact_store import Manifest
from compression_assets.store.reports import Check, StepReport
from compression_assets.study.model import Study
from compression_assets.study.names import relative_directory

SHOWN_ROWS = 60
COMPLETE = "manifest_complete"
REQUIRED = (
    *("fingerprint", "data_version", "created_at", "recipe", "recipe_fingerprint", "libraries"),
    *("device", "seconds", "peak_memory_bytes"),
)


def model_asset(
    study: Study,
    artifact: Artifact,
    *,
    group: str,
    description: str,
    tags: dict[str, str],
    kind: str = "huggingface",
    priority: dict[str, str] | None = None,
) -> dg.AssetsDefinition:
    """The asset of a model directory. kind: the library of its number format."""
    return artifact_asset(
        study,
        Shown(
            artifact,
            group=group,
            description=description,
            kinds=frozenset({"pytorch", kind}),
            tags=tags,
            metadata=lambda manifest, storage: model_metadata(manifest),
            more_checks={COMPLETE: _completeness},
        ),
        priority=priority,
    )


def released_model_asset(
    study: Study,
    asset: str,
    source: ModelSource,
    *,
    group: str,
    description: str,
    tags: dict[str, str],
    fits: Callable[[Path], None] = lambda _: None,
    masters: bool = False,
) -> dg.AssetsDefinition:
    """A model as somebody released it, written as a bfloat16 model directory.

    fits: raises StudyError for a directory of a model that cannot go through the study.
    masters: keep the digits of a release in float32 or float16 for the steps that start from it.
    """

    def build(place: BuildContext) -> StepReport:
        from compression_assets.sources.models import HubModel, download_description, fetch_model
        from compression_assets.weights.checkpoints import check_finite, check_size

        if isinstance(source, HubModel):
            # Before its weights, which may take an hour.
            fits(download_description(source, place.storage.downloads))
        metadata = fetch_model(source, place.output, place.storage.downloads, masters=masters)
        fits(place.output)
        return StepReport(checks=(check_finite(place.output), check_size(place.output)), metadata=metadata)

    artifact = Artifact(
        asset=asset,
        build=build,
        settings=source.model_dump(mode="json"),
        code=("compression_assets.sources.models",),
        checks=("weights_finite", "size_as_asked"),
        sources=(source,),
    )
    return model_asset(study, artifact, group=group, description=description, tags=tags)


def _completeness(manifest: Manifest) -> Check:
    absent = [name for name in REQUIRED if getattr(manifest, name) in (None, "")]
    absent += [] if manifest.weight_bytes else ["weights"]
    return Check(COMPLETE, not absent, f"absent: {', '.join(absent)}" if absent else "everything is recorded")


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """Recipe, loss curve and per-layer figures of a model, as Dagster metadata."""
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
    for name, value in manifest.metadata.items():
        if name in ("loss_curve", "layers", "tried"):
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
