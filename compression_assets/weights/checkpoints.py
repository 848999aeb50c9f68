"""Model directories: reading and writing weights, configs and tokenizers as plain files.

A model directory is the Hugging Face layout (config.json, generation_config.json, tokenizer files,
safetensors) in one of the number formats. A directory whose weights were trained or dequantized also holds
`masters/`: the same tensor names in fp32, for the next step. How a technique changes weights, and manifests, live
elsewhere.
"""

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from compression_assets.errors import StudyError, next_command
from compression_assets.store.reports import Check
from compression_assets.weights.files import (
    NAMED_TEMPLATES,
    TOKENIZER_FILES,
    Named,
    read_tensors,
    tensor_headers,
    write_weights,
)
from compression_assets.weights.files import weight_files as weight_files
from compression_assets.weights.formats.format import ModelTensor
from compression_assets.weights.formats.layout import Layout, layout_of, quantization_of, stored_parts
from compression_assets.weights.layers import linear_weights
from compression_assets.weights.stored import StoredWeight, read_stored
from compression_assets.weights.ties import Copies

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

MASTERS = "masters"
FREED = "masters.freed"
"""Left where masters were removed to save disk; it holds the asset's name."""


def has_masters(directory: Path) -> bool:
    """Whether a directory holds fp32 masters beside its published weights."""
    return (directory / MASTERS).is_dir()


def masters_freed(directory: Path) -> bool:
    """Whether a model was made with masters, and they were removed since."""
    return (directory / FREED).is_file() and not has_masters(directory)


def masters_or_published(directory: Path) -> Path:
    """Where the most precise weights of a full-precision model directory are.

    Raises StudyError where they were freed: published weights in their place would make another model.
    """
    if masters_freed(directory):
        asset = (directory / FREED).read_text().strip()
        raise StudyError(
            f"the float32 masters of {directory} were freed, and this starts from them; make them again with: "
            + next_command("rebuild", asset)
        )
    return directory / MASTERS if has_masters(directory) else directory


def read_config(directory: Path) -> "PretrainedConfig":
    """The model's configuration. Raises StudyError when there is none or transformers cannot read it."""
    from transformers import AutoConfig

    if not (directory / "config.json").is_file():
        raise StudyError(f"{directory} is not a model directory (it has no config.json)")
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StudyError(f"transformers cannot read {directory / 'config.json'}: {reason}") from error
    return without_requests(config)


def without_requests(config: "PretrainedConfig") -> "PretrainedConfig":
    """The configuration without what it asks of whoever loads it, and is not given: kernels, code, no quantization.

    Attention is what transformers takes, but the plain one where scores are capped (Gemma 2): fused kernels do not cap.
    """
    config._attn_implementation = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    if getattr(config, "quantization_config", True) is None:
        del config.quantization_config
    if hasattr(config, "auto_map"):
        del config.auto_map
    return config


def is_quantized(directory: Path) -> bool:
    """Whether the directory's config.json names a quantization. Raises StudyError when it cannot be read."""
    return bool(quantization_of(directory))


def refuse_quantized(directory: Path) -> None:
    """Raise StudyError when full precision is needed and the directory is quantized."""
    if is_quantized(directory):
        raise StudyError(f"{directory} is quantized, but full precision is needed; put a D before this step")


def empty_model(config: "PretrainedConfig") -> "PreTrainedModel":
    """The model of a configuration without memory for its weights (meta device)."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(_dense(config), trust_remote_code=False)
    except ValueError as error:
        raise StudyError(f"models of type {config.model_type!r} are not causal language models") from error


def stored_tensors(model: "PreTrainedModel") -> "dict[str, torch.Tensor]":
    """The tensors that belong in a checkpoint, by name: the state without the copies of tied weights."""
    tied = set(model.all_tied_weights_keys)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def model_tensors(model: "PreTrainedModel") -> list[ModelTensor]:
    """The tensors that belong in a checkpoint, with shapes and roles; a meta model will do."""
    roles = dict.fromkeys(linear_weights(model), "linear")
    modules = {id(module): name for name, module in model.named_modules()}
    for role, module in (
        ("head", model.get_output_embeddings()),
        ("embedding", model.get_input_embeddings()),
    ):
        if id(module) in modules:
            roles[f"{modules[id(module)]}.weight"] = role
    return [
        ModelTensor(name, tuple(tensor.shape), roles.get(name, "other"))  # type: ignore[arg-type]
        for name, tensor in stored_tensors(model).items()
    ]


def predicted_tensor_bytes(model: "PretrainedConfig | PreTrainedModel", layout: Layout) -> int:
    """Bytes of the published tensors that follow from the shapes alone; a meta model or a config will do.

    Descriptions in JSON (some 150 bytes a layer of NF4, with a printed float in it) are left out here and
    in `tensor_bytes`; so is the safetensors header.
    """
    from transformers import PretrainedConfig

    shaped = empty_model(model) if isinstance(model, PretrainedConfig) else model
    return sum(part.bytes for _, part in stored_parts(model_tensors(shaped), layout) if not part.text)


def tensor_bytes(directory: Path) -> int:
    """Bytes of the tensors in the published files, descriptions in JSON left out."""
    parts = stored_parts(model_tensors(empty_model(read_config(directory))), layout_of(directory))
    text = {name for name, part in parts if part.text}
    spans = [header["data_offsets"] for name, header in tensor_headers(directory).items() if name not in text]
    return sum(end - begin for begin, end in spans)


def load_full_precision(directory: Path) -> "PreTrainedModel":
    """The model in fp32 on the CPU: its masters when present, else its published weights.

    Raises StudyError when it is quantized or when a tensor is missing, unexpected or of another shape.
    """
    import torch

    refuse_quantized(directory)
    source = masters_or_published(directory)
    return _build(directory, source, read_tensors(source), torch.float32)


def load_for_scoring(directory: Path, device: str, dtype: "torch.dtype") -> "PreTrainedModel":
    """The published model (never its masters) in `dtype` on `device`, in evaluation mode.

    Quantized weights are dequantized exactly, since a CPU has no fast 4-bit kernel and the one that it has rounds
    absmax to bf16. Raises StudyError as `load_full_precision` does.
    """
    return _build(directory, directory, dense_tensors(directory), dtype).to(device).eval()


def dense_tensors(directory: Path) -> "Iterator[Named]":
    """The published weights one at a time: quantized ones dequantized to fp32, others as stored."""
    if not is_quantized(directory):
        yield from read_tensors(directory)
        return
    for weight in _stored_weights(directory):
        yield weight.name, weight.dequantized()


def quantized_weights(directory: Path) -> Iterator[StoredWeight]:
    """The quantized weights of a directory, one at a time.

    Raises StudyError when its format is unknown, a part of a weight is missing or there is none.
    """
    found = False
    for weight in _stored_weights(directory):
        if not weight.format.full_precision:
            found = True
            yield weight
    if not found:
        raise StudyError(f"{directory} has no quantized weights; it is in full precision already")


def _stored_weights(directory: Path) -> Iterator[StoredWeight]:
    tensors = model_tensors(empty_model(read_config(directory)))
    return read_stored(directory, tensors, layout_of(directory))


def fitting(source: Path, tensors: "Iterator[Named]", model: "PreTrainedModel") -> "Iterator[Named]":
    """`tensors` without copies of tied weights, each known to fit the (meta) model and none left out.

    Raises StudyError naming `source` for a tensor that is missing, unexpected or of another shape, and for a tied one
    that is no copy.
    """
    expected, tied = stored_tensors(model), model.all_tied_weights_keys
    copies = Copies(tied, source)
    for name, tensor in tensors:
        copies.see(name, tensor)
        if name in tied:
            continue
        slot = expected.pop(name, None)
        if slot is None:
            raise StudyError(f"{source} holds {name}, unknown to its config.json; build this model again")
        if slot.shape != tensor.shape:
            raise StudyError(
                f"{name} in {source} is {list(tensor.shape)}, but config.json asks for {list(slot.shape)}; "
                "build this model again"
            )
        yield name, tensor
    if expected:
        raise StudyError(
            f"{source} lacks {len(expected)} of the model's tensors, first {min(expected)}; "
            "build this model again"
        )


def save_full_precision(
    model: "PreTrainedModel", directory: Path, tokenizer_from: Path, masters: bool
) -> None:
    """Write a model in bf16, with its tokenizer; with `masters`, also as fp32 in `masters/`.

    tokenizer_from: model directory that tokenizer files and generation_config.json are copied from.
    """
    write_full_precision(stored_tensors(model), model.config, directory, tokenizer_from, masters)


def write_full_precision(
    tensors: "Mapping[str, torch.Tensor]",
    config: "PretrainedConfig",
    directory: Path,
    tokenizer_from: Path,
    masters: bool,
) -> None:
    """`save_full_precision` for tensors by name; a quantization in the config is dropped."""
    import torch

    write_weights({name: published(tensor) for name, tensor in tensors.items()}, directory)
    if masters:
        in_fp32 = {n: t.float() if t.dtype.is_floating_point else t for n, t in tensors.items()}
        write_weights(in_fp32, directory / MASTERS)
    config = _dense(config)
    config.dtype = torch.bfloat16
    config.save_pretrained(directory)
    copy_generation_config(tokenizer_from, directory)
    copy_tokenizer(tokenizer_from, directory)


def published(tensor: "torch.Tensor") -> "torch.Tensor":
    """A tensor as it is published: floating point in bf16."""
    import torch

    return tensor.to(torch.bfloat16) if tensor.dtype.is_floating_point else tensor


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files byte by byte. Raises StudyError when the source has none."""
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise StudyError(f"{source} has no tokenizer; put its tokenizer files beside the weights")
    target.mkdir(parents=True, exist_ok=True)
    for file in found:
        shutil.copyfile(file, target / file.name)
    if (source / NAMED_TEMPLATES).is_dir():
        shutil.copytree(source / NAMED_TEMPLATES, target / NAMED_TEMPLATES, dirs_exist_ok=True)


def copy_generation_config(source: Path, target: Path) -> None:
    """Copy generation_config.json where there is one; without it transformers derives it from config.json."""
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", target / "generation_config.json")


def check_finite(directory: Path) -> Check:
    """Check `weights_finite` over the published weights, quantized ones as they dequantize."""
    bad = [name for name, tensor in dense_tensors(directory) if not tensor.isfinite().all()]
    detail = f"not finite: {', '.join(bad[:3])}" if bad else "every published weight is finite"
    return Check("weights_finite", not bad, detail)


def check_size(directory: Path) -> Check:
    """Check `size_as_asked`: the file's tensors take the bytes that follow from config.json."""
    expected = predicted_tensor_bytes(read_config(directory), layout_of(directory))
    actual = tensor_bytes(directory)
    detail = f"{actual} bytes of tensors, {expected} predicted from shapes"
    return Check("size_as_asked", actual == expected, detail)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers: they grow without end in captured logs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _dense(config: "PretrainedConfig") -> "PretrainedConfig":
    """A copy of a configuration without its quantization."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _build(
    directory: Path, source: Path, tensors: "Iterator[Named]", dtype: "torch.dtype"
) -> "PreTrainedModel":
    """A model around `tensors` (assigned, not copied), with the directory's config."""
    from transformers import GenerationConfig

    config = _dense(read_config(directory))
    empty = empty_model(config)
    state = {
        name: tensor.to(dtype) if tensor.dtype.is_floating_point else tensor
        for name, tensor in fitting(source, tensors, empty)
    }
    with quiet():
        model = type(empty).from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    return model
