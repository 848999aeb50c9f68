"""Checks of model files that somebody else made: what is refused, and how a failed load is explained."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.store.fingerprints import file_sha256
from compression_assets.weights.files import VOCABULARY_FILES, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_directory(path: Path) -> None:
    """StudyError unless `path` holds config.json, safetensors weights and a tokenizer, and asks for no code."""
    if not path.is_dir():
        raise StudyError(f"the model directory {path} does not exist: correct the path in the study.")
    config = _json(path / "config.json", "it is no Hugging Face model directory")
    for name, settings in (
        ("config.json", config),
        ("tokenizer_config.json", _optional_json(path / "tokenizer_config.json")),
    ):
        if "auto_map" in settings:
            raise StudyError(
                f"{path / name} asks to run code that comes with the model (auto_map), which is never done: "
                "use a model whose architecture is part of transformers."
            )
    if "quantization_config" in config:
        raise StudyError(
            f"the model {path} is already quantized: give the directory of its full-precision weights."
        )
    files = weight_files(path)
    if not any((path / name).is_file() for name in VOCABULARY_FILES):
        raise StudyError(
            f"the model directory {path} has no tokenizer ({', '.join(VOCABULARY_FILES)}): "
            "copy the model's tokenizer files there."
        )
    for file in files:
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """StudyError if the file is cut short or no safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            opened.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise StudyError(
            f"the weights file {file} is corrupted ({first_line(error)}): copy or download it again."
        ) from error


def weights_sha256(path: Path) -> str:
    """SHA-256 (hex) of the weights: the file's, or that of the lines `sha256  name` of its shards."""
    sums = [(file_sha256(file), file.name) for file in weight_files(path)]
    if len(sums) == 1:
        return sums[0][0]
    return hashlib.sha256("".join(f"{sha}  {name}\n" for sha, name in sums).encode()).hexdigest()


def check_loaded(model: "PreTrainedModel", loading: Mapping[str, Any], path: Path) -> None:
    """StudyError if the file lacks tensors, has others than the model, or holds NaN or infinite weights."""
    import torch

    for what, key in (
        ("lacks", "missing_keys"),
        ("has unknown", "unexpected_keys"),
        ("has misshapen", "mismatched_keys"),
    ):
        names = sorted(str(name) for name in loading.get(key, ()))
        if names:
            raise StudyError(
                f"the model {path} {what} weights ({', '.join(names[:3])}{', …' if len(names) > 3 else ''}): "
                "its config and its weights do not belong together."
            )
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise StudyError(
                f"the model {path} has NaN or infinite values in {name}: it cannot be compressed or compared."
            )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns whatever transformers raises for a model it cannot load into one StudyError sentence."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    expected = (
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
        AttributeError,
        NotImplementedError,
    )
    try:
        yield
    except (*expected, StrictDataclassError, SafetensorError) as error:
        raise StudyError(
            f"the model {path} cannot be loaded ({type(error).__name__}: {first_line(error)})."
        ) from error


def licence(path: Path) -> str:
    """The `license:` of the README's front matter, else "not stated"."""
    import yaml

    readme = path / "README.md"
    parts = readme.read_text(encoding="utf-8", errors="replace").split("---", 2) if readme.is_file() else []
    if len(parts) < 3 or parts[0].strip():
        return "not stated"
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return "not stated"
    return str(front.get("license", "not stated")) if isinstance(front, dict) else "not stated"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _json(file: Path, otherwise: str) -> dict[str, Any]:
    if not file.is_file():
        raise StudyError(f"{file} does not exist: {otherwise}.")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(
            f"{file} is not valid JSON ({first_line(error)}): copy or download it again."
        ) from error
    if not isinstance(value, dict):
        raise StudyError(f"{file} does not hold a JSON object: copy or download it again.")
    return value


def _optional_json(file: Path) -> dict[str, Any]:
    return _json(file, "") if file.is_file() else {}
