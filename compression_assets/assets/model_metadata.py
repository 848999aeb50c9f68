"""What a model's asset page shows beyond the figures that every artifact has."""

from typing import Any

import dagster as dg

from compression_assets.resources.artifact_store import Manifest

SHOWN_ROWS = 60


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """Parent, recipe, loss curve and per-layer figures of a model, as Dagster metadata."""
    shown: dict[str, Any] = {
        "recipe": dg.MetadataValue.json(dict(manifest.recipe)),
        "seed": manifest.seed or 0,
    }
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
