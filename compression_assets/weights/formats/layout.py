"""Which weight of a model is stored in which format, as config.json says it.

`quantization_config` describes one format for all the weights that it covers. A mixture within one checkpoint is said
by its key "layers": module name -> the `quantization_config` of that module, {} for full precision. Formats whose own
config shares out the layers (as compressed-tensors does by groups) say so by what they cover.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.formats.format import Format, ModelTensor, Part
from compression_assets.weights.formats.registry import formats_in

Layout = Callable[[ModelTensor], Format]
LAYERS = "layers"


def everywhere(form: Format) -> Layout:
    """One format for all that it covers."""
    return _shared_out([form], {})


def layout_in(config: Mapping[str, Any]) -> Layout:
    """The layout that the content of a config.json describes. Raises StudyError for an unknown quantization."""
    quantization = config.get("quantization_config") or {}
    layers = {module: formats_in(one) for module, one in quantization.get(LAYERS, {}).items()}
    return _shared_out(formats_in(quantization), layers)


def quantization_of(directory: Path) -> dict[str, Any]:
    """The `quantization_config` of a model directory, {} in full precision. Raises StudyError when it can't be read."""
    file = directory / "config.json"
    if not file.is_file():
        raise StudyError(f"{directory} is not a model directory (it has no config.json)")
    try:
        return json.loads(file.read_text()).get("quantization_config") or {}
    except ValueError as error:
        raise StudyError(f"{file} is damaged ({error}); build or download this model again") from error


def layout_of(directory: Path) -> Layout:
    """The layout of a model directory. Raises StudyError as `quantization_of` and `layout_in`."""
    return layout_in({"quantization_config": quantization_of(directory)})


def format_of(directory: Path) -> Format:
    """The format that a model directory's weights are in, exceptions aside. Raises StudyError as `layout_of`."""
    return formats_in(quantization_of(directory))[0]


def stored_parts(tensors: Iterable[ModelTensor], layout: Layout) -> Iterator[tuple[str, Part]]:
    """Name in a file and part, for all that a model's tensors are stored as."""
    for tensor in tensors:
        form = layout(tensor)
        for suffix, part in form.parts(tensor.shape).items():
            yield form.tensor_name(tensor.name, suffix), part


def _shared_out(default: list[Format], layers: Mapping[str, list[Format]]) -> Layout:
    def form_of(tensor: ModelTensor) -> Format:
        candidates = layers.get(tensor.module, default)
        return next((form for form in candidates if form.covers(tensor)), BF16())

    return form_of
