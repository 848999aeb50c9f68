"""Checks of model files that somebody else made: what is refused, and how a failed load is explained."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError, first_line
from compression_assets.store.fingerprints import file_sha256
from compression_assets.weights import architectures
from compression_assets.weights.files import INDEX, VOCABULARY_FILES, WEIGHTS, tensor_headers, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FINER = ("F32", "F16", "F64")
"""safetensors' names of formats that have more digits than bfloat16."""


def check_directory(path: Path) -> None:
    """StudyError unless `path` holds config.json, safetensors weights and a tokenizer, and asks for no code."""
    if not path.is_dir():
        raise StudyError(f"the model directory {path} does not exist: correct the path in the study.")
    check_config(path)
    files = weight_files(path)
    if not any((path / name).is_file() for name in VOCABULARY_FILES):
        raise StudyError(
            f"the model directory {path} has no tokenizer ({', '.join(VOCABULARY_FILES)}): "
            "copy the model's tokenizer files there."
        )
    for file in files:
        check_safetensors(file)


def check_config(path: Path) -> None:
    """StudyError unless config.json is that of a full-precision text model which transformers has code for."""
    config = _json(path / "config.json", "it is no Hugging Face model directory")
    settings = _optional_json(path / "tokenizer_config.json")
    if _needs_own_code(config):
        raise StudyError(
            f"{path / 'config.json'} asks to run code that comes with the model (auto_map), which is never done: "
            f"use a model whose architecture is part of transformers ({config.get('model_type')!r} is not)."
        )
    if "auto_map" in settings and not (path / "tokenizer.json").is_file():
        raise StudyError(
            f"{path / 'tokenizer_config.json'} asks to run code that comes with the model (auto_map), which is never "
            "done, and there is no tokenizer.json beside it: use a model with one."
        )
    if config.get("quantization_config"):
        raise StudyError(
            f"the model {path} is already quantized: give the directory of its full-precision weights."
        )
    if reason := architectures.not_a_text_model(config):
        raise StudyError(f"{path / 'config.json'}: {reason}")


def _needs_own_code(config: Mapping[str, Any]) -> bool:
    """Whether a config names code of its own (auto_map) for a type of model that transformers has no code for."""
    if "auto_map" not in config:
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def names_of_weights(path: Path) -> list[str]:
    """The safetensors files that transformers would load, by the index where there is one, else the only name."""
    if not (path / INDEX).is_file():
        return [WEIGHTS]
    weight_map = _json(path / INDEX, "").get("weight_map")
    return sorted(set(weight_map.values())) if isinstance(weight_map, dict) else [WEIGHTS]


def refuse_other_weights(model: str, names: Sequence[str]) -> None:
    """Raise StudyError for a repository without safetensors, saying what it holds instead. names: of its files."""
    for suffixes, what in (
        ((".bin", ".pt", ".pth", ".ckpt"), "has only pickled weights, which can run code when they are read"),
        ((".gguf",), "has GGUF files only: download one and name it with kind: gguf"),
    ):
        if any(name.endswith(suffixes) for name in names):
            raise StudyError(f"the model {model} {what}; use a revision or repository with safetensors.")
    raise StudyError(f"the model {model} has no *.safetensors weights: use another revision or repository.")


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


def stored_finer(path: Path) -> bool:
    """Whether most of a directory's weights are stored in float32 or float16, of which bfloat16 loses digits."""
    spans = [(one["dtype"], one["data_offsets"]) for one in tensor_headers(path).values()]
    finer = sum(end - begin for dtype, (begin, end) in spans if dtype in FINER)
    return 2 * finer > sum(end - begin for _, (begin, end) in spans)


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


def note_untied(model: "PreTrainedModel") -> list[str]:
    """Make the config say so where a checkpoint has an output layer of its own although it says that it is tied."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if not getattr(model.config, "tie_word_embeddings", False) or head.weight is embeddings.weight:
        return []
    model.config.tie_word_embeddings = False
    return [
        "the config says that embeddings and output layer are tied, the weights differ: used untied, as transformers "
        "does (tie_word_embeddings set to false)"
    ]


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
