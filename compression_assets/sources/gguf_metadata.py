"""The metadata of a GGUF file: every key is used, known to be harmless, or refused by name.

Keys and their meaning: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and gguf.constants.Keys.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError

GGUF_MAGIC = b"GGUF"

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
    "GGUF.*",
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
"""Keys that may say anything. An array among these is not read."""


@dataclass(frozen=True)
class Metadata:
    """values: of all keys. shapes: tensor -> dimensions from the fastest on, as GGUF lists them. factors: of
    `rope_freqs.weight`, empty without it."""

    values: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    factors: tuple[float, ...]

    @property
    def architecture(self) -> str:
        return str(self.values["general.architecture"])

    def of_model(self, name: str, default: Any = None) -> Any:
        """The value of `<architecture>.<name>`."""
        return self.values.get(f"{self.architecture}.{name}", default)


def check_gguf(path: Path) -> None:
    """StudyError unless `path` is a file that begins like a GGUF file."""
    if not path.is_file():
        raise StudyError(f"the GGUF file {path} does not exist: correct the path in the study.")
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise StudyError(f"{path} is not a GGUF file (it does not begin with 'GGUF').")


def read_metadata(path: Path) -> Metadata:
    """StudyError if the file, or any tensor's data, is cut short, or if it says what is not read here."""
    import gguf

    check_gguf(path)
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        shapes = {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in reader.tensors}
        factors = next((tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), ())
        metadata = Metadata(values, shapes, tuple(float(factor) for factor in factors))
    except (
        ValueError,
        IndexError,
        KeyError,
        OSError,
        OverflowError,
        MemoryError,
        UnicodeDecodeError,
    ) as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StudyError(
            f"the GGUF file {path} is truncated or damaged ({message}): copy or download it again."
        ) from error
    _check_architecture(path, metadata)
    _check_keys(path, metadata)
    return metadata


def _check_architecture(path: Path, metadata: Metadata) -> None:
    if metadata.values.get("general.architecture") not in ARCHITECTURES:
        raise StudyError(
            f"{path} holds a model of architecture {metadata.values.get('general.architecture')!r}; GGUF is read for "
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
            raise StudyError(f"{path} says {key} = {metadata.values[key]}; only {only} is read here.")
    layered = [
        key
        for key, value in metadata.values.items()
        if key.startswith(f"{architecture}.") and isinstance(value, list)
    ]
    if layered:
        raise StudyError(f"{path} gives {_listed(layered)} layer by layer, which is not read here.")


def check_tensors(path: Path, metadata: Metadata, read: Iterable[str]) -> None:
    """StudyError if the file holds tensors beyond `read`, the names under which the model looks for its own."""
    unknown = sorted(set(metadata.shapes) - set(read) - {"rope_freqs.weight"})
    if unknown:
        raise StudyError(
            f"{path} holds tensors that its architecture has not ({_listed(unknown)}): "
            "give the directory that the file was made from (kind: directory or hub)."
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
