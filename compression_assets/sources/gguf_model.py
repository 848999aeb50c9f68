"""A GGUF file as the Hugging Face directory that every step starts from. Its weights are unpacked."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.sources import model_files, tokenizer_setup
from compression_assets.sources.gguf_metadata import Metadata, check_tensors, read_metadata
from compression_assets.sources.gguf_rope import rope_parameters
from compression_assets.sources.gguf_tokenizer import check_tokenizer, read_tokenizer
from compression_assets.sources.saving import save_model
from compression_assets.store.fingerprints import file_sha256
from compression_assets.text.samples import TEXTS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

CONFIG = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
"""transformers' name of a setting -> GGUF's, all of them needed."""

FINER = (0, 1)
"""`general.file_type` of files in float32 and float16 (llama.cpp, enum llama_ftype), of which bfloat16 loses digits."""


def write(path: Path, output_dir: Path, dtype: str, masters: bool) -> dict[str, Any]:
    """Write the model of a file into `output_dir`; returns the facts of `fetch_model`.

    masters: as there. Raises StudyError, one sentence naming the file, for what is not read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    metadata = read_metadata(path)
    masters = masters and metadata.values.get("general.file_type") in FINER
    settings = config_settings(path, metadata)
    tokenizer = read_tokenizer(metadata, path)
    with model_files.explained(path), _alone(path) as folder:
        config = AutoConfig.for_model(**settings)
        # Without dequantize=True the model counts as quantized and cannot be saved.
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=path.name,
            config=config,
            dtype=torch.float32 if masters else getattr(torch, dtype),
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
            output_loading_info=True,
        )
    model_files.check_loaded(model, loading, path)
    check_tensors(path, metadata, _tensor_names(model))
    notes = tokenizer_setup.prepare(tokenizer, model, path)
    notes += save_model(model, tokenizer, output_dir, dtype, masters)
    _check_saved_tokenizer(tokenizer, output_dir, path)
    return {
        "kind": "gguf",
        "origin": str(path),
        "license": str(metadata.values.get("general.license", "not stated")),
        "sha256": file_sha256(path),
        "parameters": model.num_parameters(),
        "vocab_size": model.config.vocab_size,
        "notes": notes,
    }


def check(path: Path) -> None:
    """StudyError, as `write`, for all that is known without reading a weight."""
    metadata = read_metadata(path)
    config_settings(path, metadata)
    check_tokenizer(metadata, path)


def config_settings(path: Path, metadata: Metadata) -> dict[str, Any]:
    """The model's config as transformers writes it, `model_type` included. Raises StudyError for what is missing."""
    values = {ours: metadata.of_model(theirs) for ours, theirs in CONFIG.items()}
    values["num_key_value_heads"] = values["num_key_value_heads"] or values["num_attention_heads"]
    if missing := [
        CONFIG[name] for name, value in values.items() if not isinstance(value, int | float) or not value
    ]:
        raise StudyError(f"the GGUF file {path} does not state {', '.join(missing)}: make it anew.")
    if "token_embd.weight" not in metadata.shapes:
        raise StudyError(f"the GGUF file {path} has no embeddings (token_embd.weight): make it anew.")
    width = metadata.of_model("attention.key_length", values["hidden_size"] // values["num_attention_heads"])
    try:
        rope = rope_parameters(metadata, width)
    except StudyError as error:
        raise StudyError(
            f"{path}: {error}: give the directory that the file was made from (kind: directory or hub)."
        ) from None
    return {
        "model_type": metadata.architecture,
        **values,
        "head_dim": width,
        "rope_parameters": rope,
        # GGUF lists dimensions from the fastest: [hidden, vocabulary].
        "vocab_size": metadata.shapes["token_embd.weight"][1],
        "tie_word_embeddings": "output.weight" not in metadata.shapes,
        **_biases(metadata),
        **_ends(metadata),
    }


def _biases(metadata: Metadata) -> dict[str, bool]:
    """Qwen2's projections always have biases; those of the others have where the file holds some."""
    if metadata.architecture == "qwen2":
        return {}
    found = {"attention_bias": "blk.0.attn_q.bias" in metadata.shapes}
    return found | (
        {"mlp_bias": "blk.0.ffn_up.bias" in metadata.shapes} if metadata.architecture == "llama" else {}
    )


def _ends(metadata: Metadata) -> dict[str, Any]:
    """The tokens that begin and end a text; the one that ends a turn stands beside the latter where it is another."""
    values = metadata.values
    ends = [values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else (ends or None),
    }


def _tensor_names(model: "PreTrainedModel") -> Iterator[str]:
    """The names in GGUF of everything that the model holds."""
    import gguf

    config: PreTrainedConfig = model.config
    architecture = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name in model.state_dict():
        if (found := names.get_name(name, try_suffixes=(".weight", ".bias"))) is not None:
            yield found


def _check_saved_tokenizer(tokenizer: "PreTrainedTokenizerFast", directory: Path, path: Path) -> None:
    """transformers builds some tokenizers anew by the model's type: what it loads has to be what was saved."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    for text in TEXTS:
        if loaded(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise StudyError(
                f"transformers does not load the tokenizer of {path} as the file says it (at {text[:40]!r}): "
                "give the directory that the file was made from (kind: directory or hub)."
            )


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """A folder with nothing but this file: a config or tokenizer lying beside it would be read instead."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield Path(folder)
