"""Writing a model directory as one GGUF file. NF4 weights are dequantized: GGUF has no such format.

The file is what llama.cpp reads: metadata, the tokenizer (`gguf_vocabulary`), tensors under GGUF's names with the rows
of Llama's queries and keys in llama.cpp's order. Names come from the gguf package.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.sources.gguf_rope import llama3_divisors
from compression_assets.takeaway.gguf_tensors import copied, file_type, rounded
from compression_assets.takeaway.gguf_vocabulary import read_tokenizer_json, write_vocabulary
from compression_assets.weights.formats.format import Stored
from compression_assets.weights.formats.gguf_mixture import Mixture
from compression_assets.weights.formats.gguf_types import (
    ARCHITECTURES,
    EXACT,
    GgufForm,
    ggml_type,
    refusal,
    types_as_stored,
)
from compression_assets.weights.formats.grouped_integer import GroupedInteger

if TYPE_CHECKING:
    import gguf
    import torch

YARN = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
"""Settings of a YaRN that llama.cpp computes as transformers does."""


def write_gguf(
    directory: Path,
    file: Path,
    name: str,
    note: str,
    form: GgufForm | None = None,
    importance: "Mapping[str, torch.Tensor] | None" = None,
) -> None:
    """Write `directory` (bf16 or quantized) into `file`. form: bf16 unless said. importance: see `importance`.

    Raises StudyError for an architecture or a tokenizer that this does not cover, and for weights that the type cannot
    hold.
    """
    import gguf
    from transformers import AutoTokenizer

    from compression_assets.weights.checkpoints import read_config

    form = form or GgufForm()
    config = read_config(directory)
    if reason := refusal(config.to_dict()):
        raise StudyError(f"{directory}: {reason}: use --format hf")
    content = read_tokenizer_json(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    writer.add_description(note)
    _add_config(writer, config)
    writer.add_file_type(file_type(form.kind))
    if form.kind not in EXACT:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_vocabulary(writer, content, tokenizer, config.vocab_size, directory)
    _add_tensors(writer, directory, config, architecture, form, importance or {})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_config(writer: "gguf.GGUFWriter", config: Any) -> None:
    heads = config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(_head(config))
    writer.add_value_length(_head(config))
    writer.add_rope_dimension_count(_head(config))
    _add_rope(writer, config)


def _add_rope(writer: "gguf.GGUFWriter", config: Any) -> None:
    """Rotary positions as `sources.gguf_rope` reads them. Raises StudyError for a kind that GGUF cannot say."""
    import gguf
    import numpy as np

    rope = config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    # llama.cpp looks for this tensor in Llama models only.
    if kind == "llama3" and config.model_type == "llama":
        divisors = np.array(llama3_divisors(rope, _head(config)), dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", divisors)
    elif kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn" and rope.keys() <= YARN:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    elif kind != "default":
        raise StudyError(
            f"rotary positions of type {kind!r} are not written to GGUF for {config.model_type}: use --format hf"
        )


def _head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_tensors(
    writer: "gguf.GGUFWriter",
    directory: Path,
    config: Any,
    architecture: "gguf.MODEL_ARCH",
    form: GgufForm,
    importance: "Mapping[str, torch.Tensor]",
) -> None:
    import gguf

    from compression_assets.weights.checkpoints import dense_tensors, empty_model, fitting

    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    model = empty_model(config)
    to_copy = _to_copy(directory, form.kind)
    grouped = config.num_attention_heads // config.num_key_value_heads
    tied = bool(config.tie_word_embeddings)
    mixture = Mixture(form, config.num_hidden_layers, tied, grouped, copies=bool(to_copy))
    for name, tensor in fitting(directory, dense_tensors(directory), model):
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise StudyError(f"the tensor {name} of {directory} has no name in GGUF: use --format hf")
        if tensor.ndim == 1:
            writer.add_tensor(found, _in_llama_order(name, tensor, config).float().contiguous().numpy())
        elif name in to_copy:
            integers, stored, kind = to_copy.pop(name)
            codes, scales = (
                _in_llama_order(name, one, config)
                for one in (integers.codes(stored), integers.scales(stored))
            )
            raw = copied(name, codes, scales, kind)
            writer.add_tensor(found, raw, raw_dtype=ggml_type(kind))
        else:
            kind = mixture.type_of(found, tensor.shape[1])
            raw = rounded(name, _in_llama_order(name, tensor, config), kind, importance.get(name))
            writer.add_tensor(found, raw, raw_dtype=ggml_type(kind))


def _to_copy(directory: Path, kind: str) -> "dict[str, tuple[GroupedInteger, Stored, str]]":
    """Weight name -> format, parts and type, of the weights whose codes and scales the type holds as they are."""
    from compression_assets.weights.checkpoints import is_quantized, quantized_weights

    if not is_quantized(directory):
        return {}
    weights = {weight.name: weight for weight in quantized_weights(directory)}
    types = types_as_stored({name: weight.format for name, weight in weights.items()}, kind)
    return {
        name: (form, weights[name].parts, own)
        for name, own in types.items()
        if isinstance(form := weights[name].format, GroupedInteger)
    }


def _in_llama_order(name: str, tensor: "torch.Tensor", config: Any) -> "torch.Tensor":
    """Rows as llama.cpp's Llama has them: it rotates neighbouring rows, transformers the two halves of a head."""
    if config.model_type != "llama":
        return tensor
    if ".q_proj." in name:
        heads = config.num_attention_heads
    elif ".k_proj." in name:
        heads = config.num_key_value_heads
    else:
        return tensor
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
