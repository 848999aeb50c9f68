"""Files of a model directory: their names, and safetensors read and written. What they mean is in checkpoints.py."""

import json
import os
import re
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
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Without one of these there is no tokenizer."""
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
NAMED_TEMPLATES = "additional_chat_templates"
"""Folder of the chat templates of a tokenizer that has several, the default one aside."""


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that transformers would load: model.safetensors, else the shards of the index, sorted.

    Raises StudyError when there are none, when only pickled weights are there, when a shard is missing or lies
    outside the directory.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        return _shards(directory / INDEX)
    if any(next(directory.glob(pattern), None) for pattern in PICKLES):
        raise StudyError(
            f"{directory} has only pickled weights, which can run code when they are read; "
            "convert it to safetensors (or use a revision that has them)"
        )
    raise StudyError(f"{directory} has no *.safetensors weights; build or download this model again")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if "/" in name or "\\" in name or name in ("", ".", "..")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{index} is damaged ({error!r}); build or download this model again") from error
    if outside:
        raise StudyError(f"{index} names the file {outside[0]!r} outside its directory; use another model")
    files = [index.parent / name for name in names]
    for file in files:
        if not file.is_file():
            raise StudyError(
                f"{file} is named by the model's index but missing; build or download this model again"
            )
    if not files:
        raise StudyError(f"{index} is damaged (it names no file); build or download this model again")
    return files


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
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / WEIGHTS
    save_tensors(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"}
    )
    return file


def is_whole(file: Path) -> bool:
    """Whether a safetensors file is there with all the bytes that its header announces."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def to_disk(file: Path) -> None:
    """Return once a file's bytes are on the disk: a rename can outlive a power failure that they do not."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def save_tensors(
    tensors: "Mapping[str, torch.Tensor]", file: Path, metadata: dict[str, str] | None = None
) -> None:
    """safetensors' save_file, for a file readable by all. Raises OSError when the disk is full or will not have it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), file, metadata)
    except SafetensorError as error:
        # The number of the system's error is in the message only.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
    # safetensors writes through a temporary file that only its owner may read.
    file.chmod(0o644)
