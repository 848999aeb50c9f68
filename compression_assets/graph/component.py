"""A study inside somebody's own Dagster project: the component `compression_assets.CompressionStudy`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import dagster as dg
from pydantic import Field

from compression_assets.graph.build import study_assets, study_resources
from compression_assets.graph.jobs import FULL_STUDY
from compression_assets.graph.steps import step_executor
from compression_assets.study.files import PRESETS, load_study, presets, study_of
from compression_assets.study.model import Study
from compression_assets.study.new_study import name_of_file
from compression_assets.study.places import claim_storage, storage_root
from compression_assets.study.plain_yaml import read_mapping

PRELOADED = "compression_assets.graph.preloaded_libraries"
DEFS = "defs.yaml"
FIRST_STUDY = "smoke"


class _Scaffolder(dg.Scaffolder):
    """`dg scaffold defs compression_assets.CompressionStudy NAME`: defs.yaml, and a study that runs beside it."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        folder = request.target_path.parent if request.append else request.target_path
        name = name_of_file(folder)
        dg.scaffold_component(request, {"study": f"{name}.yaml"})
        text = (
            (PRESETS / f"{FIRST_STUDY}.yaml")
            .read_text()
            .replace(f"name: {FIRST_STUDY}\n", f"name: {name}\n", 1)
        )
        (folder / f"{name}.yaml").write_text(text)


@dg.scaffold_with(_Scaffolder)
class CompressionStudy(dg.Component, dg.Model, dg.Resolvable):
    """Every asset and check of a study, and a job that makes them all, in a code location that may have others.

    Keys, groups and the job `<prefix>_full_study` are prefixed; the study's resources are `<study>_gpu` and
    `<study>_storage`. Raises StudyError for a study that cannot be read, and for one whose storage is another's.
    """

    study: Annotated[
        str | dict[str, Any],
        Field(description="The study: a file beside this one, a preset's name, or the study itself."),
    ]
    key_prefix: Annotated[
        str | None,
        Field(description="Prefix of the asset keys, parts apart by '/'. By default the study's name."),
    ] = None
    storage: Annotated[
        str | None,
        Field(
            description="Directory of the results, beside this file if it is relative. By default "
            "COMPRESSION_STORAGE, else `storage` in the project; the study has a folder of its name there."
        ),
    ] = None

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        study, file = self._read(context.path)
        root = self._storage(context) / study.name
        claim_storage(study, str(file), root)
        prefix = (self.key_prefix or study.name).split("/")
        assets = _prefixed(study_assets(study), prefix)
        everything = dg.AssetSelection.assets(*(key for asset in assets for key in asset.keys))
        job = dg.define_asset_job(
            "_".join([*prefix, FULL_STUDY]),
            everything,
            description=f"Every model of the study {study.name}, measured, and the leaderboard.",
            executor_def=step_executor(PRELOADED),
        )
        return dg.Definitions(assets=assets, jobs=[job], resources=study_resources(study, root))

    def _read(self, folder: Path) -> tuple[Study, Path | str]:
        """The study, and what it was read from."""
        if isinstance(self.study, str):
            named = self.study if self.study in presets() else folder / self.study
            return load_study(named), named
        # From the file: Dagster reads 5e-5 as text, and a chat template as a template of its own.
        file = folder / DEFS
        return study_of(read_mapping(file)["attributes"]["study"], file), file

    def _storage(self, context: dg.ComponentLoadContext) -> Path:
        if self.storage is not None:
            return (context.path / self.storage).resolve()
        return storage_root(default=context.project_root / "storage")


def _prefixed(assets: Iterable[dg.AssetsDefinition], prefix: list[str]) -> list[dg.AssetsDefinition]:
    """The same with a prefix to every key, check, group and step; what they read from elsewhere keeps its key."""
    known = list(assets)
    keys = {key: key.with_prefix(prefix) for asset in known for key in asset.keys}

    def grouped(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.replace_attributes(group_name="_".join([*prefix, spec.group_name or ""]))

    return [
        _renamed(asset, "__".join([*prefix, asset.op.name]))
        .map_asset_specs(grouped)
        .with_attributes(asset_key_replacements=keys)
        for asset in known
    ]


def _renamed(asset: dg.AssetsDefinition, name: str) -> dg.AssetsDefinition:
    """The same with another name for its step, which has to be the only one of that name in a code location."""
    step = asset.op.with_replaced_properties(name)
    return dg.AssetsDefinition.dagster_internal_init(**{**asset.get_attributes_dict(), "node_def": step})
