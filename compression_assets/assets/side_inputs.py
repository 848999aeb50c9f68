"""Inputs that a selection such as '*final_p_kd_q*' does not cover: made on the way where they are missing.

The ancestors of a model are not those of what measures it: the evaluation set, the questions and the judge's own test
stand beside its line. Without this, a selection of models in a new storage would build them and then not measure them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import dagster as dg

from compression_assets.assets.artifact import as_failure
from compression_assets.assets.layout import relative_directory
from compression_assets.resources.artifact_store import Manifest
from compression_assets.resources.gpu import Gpu
from compression_assets.resources.storage import StudyStorage

Make = Callable[[dg.AssetExecutionContext, StudyStorage, Gpu], Manifest]


@dataclass(frozen=True)
class SideInput:
    """asset: key of the input. make: makes it as its own step would."""

    asset: str
    make: Make


def make_missing(
    inputs: Iterable[SideInput], context: dg.AssetExecutionContext, storage: StudyStorage, gpu: Gpu
) -> None:
    """Make those that are not there, and say so in Dagster's history. One that is there is left as it is."""
    for one in inputs:
        with as_failure(one.asset):
            directory = storage.artifacts.root / relative_directory(one.asset)
            if storage.artifacts.manifest(directory, one.asset) is not None:
                continue
            manifest = one.make(context, storage, gpu)
        context.log_event(
            dg.AssetMaterialization(
                one.asset,
                description=f"Made by {context.asset_key.to_user_string()}, which needs it.",
                metadata={"path": dg.MetadataValue.path(str(directory))},
                tags={"dagster/data_version": manifest.data_version},
            )
        )
