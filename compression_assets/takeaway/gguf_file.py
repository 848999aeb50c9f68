"""Writing a model directory as one GGUF file, in 16 bit. NF4 weights are dequantized: GGUF has no such format.

The file is what llama.cpp reads: metadata, a byte-level BPE tokenizer, tensors under GGUF's names with the rows of
Llama's queries and keys in llama.cpp's order. Names come from the gguf package.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError

if TYPE_CHECKING:
    import gguf
    import torch

ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2"}


def write_gguf(directory: Path, file: Path, name: str, note: str) -> None:
    """Write `directory` (bf16 or quantized) into `file`: matrices in bfloat16, vectors in float32.

    Raises StudyError for an architecture or a tokenizer that this does not cover.
    """
    import gguf

    from compression_assets.weights.checkpoints import read_config

    config = read_config(directory)
    if config.model_type not in ARCHITECTURES:
        raise StudyError(
            f"{directory} is a {config.model_type} model; GGUF is written for {' and '.join(ARCHITECTURES)} only: "
            "use --format hf"
        )
    tokenizer = _tokenizer(directory)
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    writer.add_description(note)
    _add_config(writer, config)
    _add_tokenizer(writer, tokenizer, directory, config)
    _add_tensors(writer, directory, config, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_config(writer: "gguf.GGUFWriter", config: Any) -> None:
    import gguf

    heads = config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(_head(config))
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise StudyError(
            f"rotary positions of type {rope['rope_type']!r} are not written to GGUF: use --format hf"
        )
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _tokenizer(directory: Path) -> dict[str, Any]:
    file = directory / "tokenizer.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if content.get("model", {}).get("type") != "BPE":
        raise StudyError(f"{directory} has no byte-pair tokenizer.json, which GGUF needs: use --format hf")
    # GGUF has no empty list, and transformers reads one of a single entry as that entry.
    if len(content["model"]["merges"]) < 2:
        raise StudyError(
            f"the tokenizer of {directory} merges nothing, which GGUF cannot say: use --format hf"
        )
    return content


def _add_tokenizer(writer: "gguf.GGUFWriter", content: dict[str, Any], directory: Path, config: Any) -> None:
    """Tokens by id, padded to the model's vocabulary; which rules split text is told by the architecture."""
    import gguf
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    by_id = {index: text for text, index in tokenizer.get_vocab().items()}
    special = {token["id"]: token["special"] for token in content["added_tokens"]}
    tokens, kinds = [], []
    for index in range(config.vocab_size):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        if index not in by_id:
            kinds.append(gguf.TokenType.UNUSED)
        elif index in special:
            kinds.append(gguf.TokenType.CONTROL if special[index] else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(content))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    writer.add_token_merges(merges)
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if name == "bos" and index is None:
            # Readers insist on one; add_bos_token below keeps it out of every text.
            index = tokenizer.eos_token_id
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(content: dict[str, Any]) -> str:
    """llama.cpp's name for the rules by which text is split before merging."""
    rules = json.dumps(content.get("pre_tokenizer"))
    if '"Digits"' in rules:
        return "smollm"
    return "qwen2" if '"Split"' in rules and "\\\\p{N}" in rules else "gpt-2"


def _add_tensors(
    writer: "gguf.GGUFWriter", directory: Path, config: Any, architecture: "gguf.MODEL_ARCH"
) -> None:
    import gguf

    from compression_assets.weights.checkpoints import dense_tensors, empty_model, fitting

    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    model = empty_model(config)
    for name, tensor in fitting(directory, dense_tensors(directory), model):
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise StudyError(f"the tensor {name} of {directory} has no name in GGUF: use --format hf")
        if config.model_type == "llama":
            tensor = _in_llama_order(name, tensor, config)
        if tensor.ndim == 1:
            writer.add_tensor(found, tensor.float().contiguous().numpy())
            continue
        _add_bfloat16(writer, found, tensor)


def _add_bfloat16(writer: "gguf.GGUFWriter", name: str, tensor: "torch.Tensor") -> None:
    """numpy has no bfloat16: its bits go in as the bytes that they are."""
    import gguf
    import torch

    raw = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)


def _in_llama_order(name: str, tensor: "torch.Tensor", config: Any) -> "torch.Tensor":
    """llama.cpp rotates neighbouring rows, transformers the two halves of a head."""
    if ".q_proj." in name:
        heads = config.num_attention_heads
    elif ".k_proj." in name:
        heads = config.num_key_value_heads
    else:
        return tensor
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
