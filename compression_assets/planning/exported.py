"""Bytes of the files that a study exports to serve them, from configs alone."""

from compression_assets.weights.formats.gguf_mixture import Mixture
from compression_assets.weights.formats.gguf_types import (
    ARCHITECTURES,
    GgufForm,
    ggml_type,
    types_as_stored,
)
from compression_assets.weights.formats.layout import layout_in
from compression_assets.weights.shapes import Config, tensors


def gguf_bytes(config: Config, form: GgufForm) -> int:
    """Bytes of all tensors of a model in a GGUF file; each in the type in which `write_gguf` writes it.

    config: of one of gguf_types.ARCHITECTURES. Raises StudyError for embeddings that do not fit their type.
    """
    import gguf

    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[ARCHITECTURES[config["model_type"]]], layers)
    tied = bool(config.get("tie_word_embeddings", False))
    layout = layout_in(config)
    formats = {tensor.name: layout(tensor) for tensor in tensors(config)}
    quantized = {name: one for name, one in formats.items() if not one.full_precision}
    copied = types_as_stored(quantized, form.kind)
    grouped = heads // (config.get("num_key_value_heads") or heads)
    mixture = Mixture(form, layers, tied, grouped, copies=bool(copied))
    total = 0
    for tensor in tensors(config):
        name = names.get_name(tensor.name, try_suffixes=(".weight", ".bias")) or tensor.name
        if len(tensor.shape) == 1:
            total += 4 * tensor.size
            continue
        kind = copied.get(tensor.name) or mixture.type_of(name, tensor.shape[1])
        weights, of_bytes = gguf.GGML_QUANT_SIZES[ggml_type(kind)]
        total += tensor.size // weights * of_bytes
    return total
