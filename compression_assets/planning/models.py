"""The config of a study's models without their weights: from what ships with the package, or what is on this disk."""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError, next_command
from compression_assets.sources.models import (
    AssetModel,
    DirectoryModel,
    GgufModel,
    HubModel,
    ModelSource,
    RandomModel,
    WheelModel,
)
from compression_assets.sources.paths import local_path
from compression_assets.sources.random_model import VOCABULARY_SIZE
from compression_assets.weights.shapes import Config


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """Hub id, or file inside a wheel -> the shapes in its public config.json. For planning without a network."""
    text = (resources.files("compression_assets") / "data" / "known_models.json").read_text()
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def config_of(source: ModelSource, downloads: Path, built: Path | None = None) -> Config:
    """The config of a model that may never have been on this machine; nothing is downloaded.

    downloads: where hub models and wheels are kept. built: the model's directory in the study's storage, if it has
    been fetched before. Raises StudyError when its shapes are known nowhere.
    """
    if isinstance(source, RandomModel):
        return _random(source)
    if isinstance(source, DirectoryModel):
        return _read(local_path(source.path) / "config.json")
    if isinstance(source, AssetModel):
        return _read(source.directory() / "config.json")
    if isinstance(source, GgufModel):
        return _gguf(local_path(source.path))
    name = source.repo if isinstance(source, HubModel) else source.file
    if name in known_models():
        return known_models()[name]
    cached = (
        _hub_config(source, downloads) if isinstance(source, HubModel) else _wheel_member(source, downloads)
    )
    if cached is not None:
        return _gguf(cached) if cached.suffix == ".gguf" else _read(cached)
    if built is not None and (built / "config.json").is_file():
        return _read(built / "config.json")
    raise StudyError(
        f"the shapes of {name} are not known without its config.json: run the study once to fetch it "
        f"({next_command('run', '--select', 'base_model')}), or add them to compression_assets/data/known_models.json"
    )


def _read(file: Path) -> Config:
    try:
        found: Config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise StudyError(f"{file} cannot be read ({error}): correct the path in the study") from error
    return found


def _random(source: RandomModel) -> Config:
    config = source.model_dump(exclude={"kind", "architecture", "seed"})
    return config | {"model_type": source.architecture, "vocab_size": source.vocab_size or VOCABULARY_SIZE}


def _gguf(file: Path) -> Config:
    from compression_assets.sources.gguf_metadata import read_metadata
    from compression_assets.sources.gguf_model import config_settings

    return config_settings(file, read_metadata(file))


def _hub_config(source: HubModel, downloads: Path) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for cache_dir in (downloads / "hub", None):
        found = try_to_load_from_cache(
            source.repo, "config.json", cache_dir=cache_dir, revision=source.revision
        )
        if isinstance(found, str):
            return Path(found)
    return None


def _wheel_member(source: WheelModel, downloads: Path) -> Path | None:
    """The file of a wheel (or the config of a directory in it), if the wheel has been fetched before."""
    archive = f"{source.package}-{source.version}-{source.sha256[:16]}"
    file = downloads / "extracted" / archive / source.file
    file = file / "config.json" if file.is_dir() else file
    return file if file.is_file() else None
