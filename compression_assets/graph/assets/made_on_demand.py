"""Inputs that a selection such as '*final_p_kd_q*' does not cover: made on the way where they are missing.

The ancestors of a model are not those of what measures it: the evaluation set, the questions and the judge's own test
stand beside its line. Without this, a selection of models in a new storage would build them and then not measure them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import dagster as dg

from compression_assets.graph.assets.artifact import Artifact, Build, as_failure, make
from compression_assets.graph.resources import Gpu, StudyStorage
from compression_assets.store.artifact_store import Manifest
from compression_assets.study.names import relative_directory


@dataclass(frozen=True)
class SideInput:
    """An input that its own asset makes, and a step that finds it missing.

    build: how, given a storage. record: what else is left of it, such as rows in the database.
    """

    artifact: Artifact
    build: Callable[[StudyStorage], Build]
    record: Callable[[StudyStorage, Manifest], None] = lambda storage, manifest: None

    def make(
        self, context: dg.AssetExecutionContext, storage: StudyStorage, gpu: Gpu, rebuild: bool = False
    ) -> tuple[Manifest, bool]:
        """As `artifact.make`."""
        manifest, cached = make(context, self.artifact, self.build(storage), storage, gpu, rebuild)
        with as_failure(self.artifact.asset):
            self.record(storage, manifest)
        return manifest, cached


def make_missing(
    inputs: Iterable[SideInput], context: dg.AssetExecutionContext, storage: StudyStorage, gpu: Gpu
) -> None:
    """Make those that are not there, and say so in Dagster's history. One that is there is left as it is."""
    for one in inputs:
        asset = one.artifact.asset
        with as_failure(asset):
            directory = storage.artifacts.root / relative_directory(asset)
            if storage.artifacts.manifest(directory, asset) is not None:
                continue
        manifest, _ = one.make(context, storage, gpu)
        context.log_event(
            dg.AssetMaterialization(
                asset,
                description=f"Made by {context.asset_key.to_user_string()}, which needs it.",
                metadata={"path": dg.MetadataValue.path(str(directory))},
                tags={"dagster/data_version": manifest.data_version},
            )
        )
