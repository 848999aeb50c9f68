"""The weights in the files of a model directory, each with its number format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.weights.files import read_tensors, tensor_headers
from compression_assets.weights.formats.bf16 import BF16
from compression_assets.weights.formats.format import Format, ModelTensor, Part, Shape, Stored
from compression_assets.weights.formats.layout import Layout

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StoredWeight:
    """A weight as a file holds it: all of its parts. shape: [out, in] of the weight itself."""

    name: str
    shape: Shape
    format: Format
    parts: Stored

    def dequantized(self) -> "torch.Tensor":
        """The exact weight: fp32, or as stored where it is in full precision."""
        return self.parts[""] if self.format.full_precision else self.format.dequantize(self.parts)


def read_stored(directory: Path, tensors: Sequence[ModelTensor], layout: Layout) -> Iterator[StoredWeight]:
    """Every weight of a directory, one at a time, and what its model does not know as if it were in full precision.

    tensors: the model's. Raises StudyError for damaged files, or when a part of a quantized weight is missing or not
    as its format says.
    """
    headers = tensor_headers(directory)
    owners: dict[str, tuple[ModelTensor, str]] = {}
    formats = {tensor.name: layout(tensor) for tensor in tensors}
    for tensor in tensors:
        form = formats[tensor.name]
        if form.full_precision:
            continue
        parts = form.parts(tensor.shape)
        names = {form.tensor_name(tensor.name, part): part for part in parts}
        if missing := names.keys() - headers.keys():
            lacking = ", ".join(sorted(names[name] or "its codes" for name in missing))
            raise StudyError(f"{tensor.name} in {directory} lacks {lacking}; build this model again")
        for name, part in names.items():
            _check_part(directory, name, headers[name], parts[part], form)
            owners[name] = (tensor, part)

    gathered: dict[str, Stored] = {}
    for name, content in read_tensors(directory):
        if name not in owners:
            yield StoredWeight(name, tuple(content.shape), BF16(), {"": content})
            continue
        tensor, part = owners[name]
        form, found = formats[tensor.name], gathered.setdefault(tensor.name, {})
        found[part] = content
        if len(found) == len(form.parts(tensor.shape)):
            yield StoredWeight(tensor.name, tensor.shape, form, gathered.pop(tensor.name))


def _check_part(directory: Path, name: str, header: dict[str, Any], part: Part, form: Format) -> None:
    found = header["dtype"], tuple(header["shape"])
    if found != (part.dtype, part.shape) and not part.text:
        raise StudyError(
            f"{name} in {directory} is {found[0]} {list(found[1])}, but {form.title} by its config.json stores "
            f"{part.dtype} {list(part.shape)}; build or download this model again"
        )
