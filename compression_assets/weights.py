"""Safetensors files: finding, reading and writing them. What their tensors mean is in checkpoints.py."""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    import torch

Named = tuple[str, "torch.Tensor"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory, one or the shards that its index names, sorted.

    Raises StudyError when there are none, when only pickled weights are there, or when a shard is missing.
    """
    index = directory / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError) as error:
            raise StudyError(f"{index} is damaged ({error}); build or download this model again") from error
    else:
        names = [WEIGHTS]
    files = [directory / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return files
    if any(directory.glob("*.bin")):
        raise StudyError(f"{directory} holds pickled weights (*.bin) only; save it as safetensors first")
    raise StudyError(f"{directory} has no {', '.join(missing)}; build or download this model again")


def tensor_headers(directory: Path) -> dict[str, dict[str, Any]]:
    """Name -> {"dtype": "BF16", "shape": [...], "data_offsets": [begin, end]}, without reading weights."""
    headers: dict[str, dict[str, Any]] = {}
    for file in weight_files(directory):
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > file.stat().st_size:
                    raise ValueError("its header is longer than the file")
                header = json.loads(stream.read(length))
        except (struct.error, ValueError) as error:
            raise StudyError(f"{file} is damaged ({error}); build or download this model again") from error
        header.pop("__metadata__", None)
        headers.update(header)
    return headers


def read_tensors(directory: Path) -> "Iterator[Named]":
    """Every stored tensor, one at a time, on the CPU in its stored dtype.

    Raises StudyError for missing, pickled or damaged files.
    """
    from safetensors import SafetensorError, safe_open

    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise StudyError(f"{file} is damaged ({error}); build or download this model again") from error


def write_weights(tensors: "Mapping[str, torch.Tensor]", directory: Path) -> Path:
    """Write tensors into one safetensors file, readable by all; the same tensors give the same bytes."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    file = directory / WEIGHTS
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"}
    )
    # safetensors writes through a temporary file that only its owner may read.
    file.chmod(0o644)
    return file
