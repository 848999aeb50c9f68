"""The metadata of a GGUF file: every key is used, known to be harmless, or refused by name.

Keys and their meaning: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and gguf.constants.Keys.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.sources.gguf_header import MAGIC, Header, read_floats, read_header
from compression_assets.tables import shortened

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""general.architecture of the files that are read; transformers calls these models by the same names."""

USED = (
    "general.architecture",
    "general.type",
    "general.license",
    "split.count",
    "{arch}.block_count",
    "{arch}.context_length",
    "{arch}.embedding_length",
    "{arch}.feed_forward_length",
    "{arch}.vocab_size",
    "{arch}.attention.head_count",
    "{arch}.attention.head_count_kv",
    "{arch}.attention.key_length",
    "{arch}.attention.value_length",
    "{arch}.attention.layer_norm_rms_epsilon",
    "{arch}.attention.causal",
    "{arch}.expert_count",
    "{arch}.rope.dimension_count",
    "{arch}.rope.freq_base",
    "{arch}.rope.scale_linear",
    "{arch}.rope.scaling.type",
    "{arch}.rope.scaling.factor",
    "{arch}.rope.scaling.original_context_length",
    "{arch}.rope.scaling.attn_factor",
    "{arch}.rope.scaling.yarn_beta_fast",
    "{arch}.rope.scaling.yarn_beta_slow",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.chat_template",
    "tokenizer.chat_template.*",
)
"""Keys that decide what the model or its tokenizer computes, and are read as such."""

HARMLESS = (
    "general.*",  # names, authors, where the weights come from, how they were coded
    "split.no",
    "split.tensors.count",
    "quantize.imatrix.*",  # what the weights were calibrated with
    "{arch}.rope.scaling.finetuned",  # whether the model was trained with its scaling
    "{arch}.expert_used_count",  # of no experts: expert_count is refused otherwise
    "{arch}.attention.layer_norm_epsilon",  # of norms with a mean, which these architectures have not
    "tokenizer.ggml.token_type_count",  # of segments, BERT's
    "tokenizer.chat_templates",  # the names of tokenizer.chat_template.*
    "tokenizer.huggingface.json",  # a copy in another format
    "tokenizer.ggml.*_token_id",  # tokens of other tasks, such as filling in the middle
)
"""Keys that may say anything."""

SCALING = "rope_freqs.weight"
"""The tensor that says by what each rotary frequency is divided."""


@dataclass(frozen=True)
class Metadata:
    """values: of all keys. shapes: tensor -> dimensions from the fastest on, as GGUF lists them. factors: of
    `SCALING`, empty without it."""

    values: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    factors: tuple[float, ...]

    @property
    def architecture(self) -> str:
        return str(self.values["general.architecture"])

    def of_model(self, name: str, default: Any = None) -> Any:
        """The value of `<architecture>.<name>`."""
        return self.values.get(f"{self.architecture}.{name}", default)


def read_metadata(path: Path) -> Metadata:
    """What a file says besides its weights, in a fraction of a second.

    StudyError if the file or any tensor's data is cut short, or if it says what is not read here.
    """
    if not path.is_file():
        raise StudyError(f"the GGUF file {path} does not exist: correct the path in the study.")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise StudyError(f"{path} is not a GGUF file (it does not begin with 'GGUF').")
    try:
        header = read_header(path)
        _check_whole(path, header)
        factors = read_floats(path, header.tensors[SCALING]) if SCALING in header.tensors else ()
    except (ValueError, OSError) as error:
        raise StudyError(
            f"the GGUF file {path} is truncated or damaged ({shortened(error)}): copy or download it again."
        ) from error
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    metadata = Metadata(header.values, shapes, factors)
    _check_architecture(path, metadata)
    _check_keys(path, metadata)
    return metadata


def _check_whole(path: Path, header: Header) -> None:
    """ValueError if a tensor ends beyond the file or is in a type that the gguf package does not know."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size = path.stat().st_size
    for name, tensor in header.tensors.items():
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        if tensor.start + math.prod(tensor.shape) // block * block_bytes > size:
            raise ValueError(f"it ends before its tensor {name}")


def _check_architecture(path: Path, metadata: Metadata) -> None:
    if (found := metadata.values.get("general.architecture")) not in ARCHITECTURES:
        raise StudyError(
            f"{path} holds a model of architecture {shortened(repr(found))}; GGUF is read for "
            f"{', '.join(ARCHITECTURES)} only: give the directory that the file was made from (kind: directory or hub)."
        )


def _check_keys(path: Path, metadata: Metadata) -> None:
    architecture = metadata.architecture
    known = [pattern.format(arch=architecture) for pattern in (*USED, *HARMLESS)]
    unknown = [key for key in metadata.values if not any(fnmatchcase(key, pattern) for pattern in known)]
    if unknown:
        raise StudyError(
            f"{path} sets {_listed(unknown)}, which {'is' if len(unknown) == 1 else 'are'} not read here, so that "
            "the model would be another: give the directory that the file was made from (kind: directory or hub)."
        )
    for key, only in (
        ("general.type", "model"),
        ("split.count", 0),
        (f"{architecture}.expert_count", 0),
        (f"{architecture}.attention.causal", True),
        (f"{architecture}.attention.value_length", metadata.of_model("attention.key_length")),
    ):
        # A file in one piece may say so with 1.
        if key in metadata.values and metadata.values[key] not in (only, 1 if key == "split.count" else only):
            raise StudyError(
                f"{path} says {key} = {shortened(metadata.values[key])}; only {only} is read here."
            )
    layered = [
        key
        for key, value in metadata.values.items()
        if key.startswith(f"{architecture}.") and isinstance(value, list)
    ]
    if layered:
        raise StudyError(f"{path} gives {_listed(layered)} layer by layer, which is not read here.")


def check_tensors(path: Path, metadata: Metadata, read: Iterable[str]) -> None:
    """StudyError if the file holds tensors beyond `read`, the names under which the model looks for its own."""
    unknown = sorted(set(metadata.shapes) - set(read) - {SCALING})
    if unknown:
        raise StudyError(
            f"{path} holds tensors that its architecture has not ({_listed(unknown)}): "
            "give the directory that the file was made from (kind: directory or hub)."
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
