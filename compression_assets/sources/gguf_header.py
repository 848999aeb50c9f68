"""The header of a GGUF file: its keys with their values, and what its tensors are called. Weights are not read.

In plain Python: a study is checked whenever it is read, and the gguf package takes seconds for a large vocabulary.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3 in little-endian order.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Bytes at whose multiples tensors begin, where `general.alignment` does not say."""

FLOAT32 = 0
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""gguf_metadata_value_type -> struct's letter."""
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """shape: from the fastest dimension on. kind: a ggml_type. start: its first byte in the file."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class Header:
    """values: of all keys. tensors: by name."""

    values: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Raises ValueError, saying what is wrong, for a file that is cut short or is none of this format."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _header(_Cursor(data))
        except struct.error as error:
            raise ValueError("it ends within its header") from error


def read_floats(path: Path, tensor: TensorInfo) -> tuple[float, ...]:
    """The values of a tensor in float32. Raises ValueError if it is in another type or cut short."""
    count = math.prod(tensor.shape)
    with path.open("rb") as file:
        file.seek(tensor.start)
        data = file.read(4 * count)
    if tensor.kind != FLOAT32 or len(data) != 4 * count:
        raise ValueError("a tensor of settings is cut short or not in float32")
    return struct.unpack(f"<{count}f", data)


class _Cursor:
    """Reads one thing after the other. struct.error where the file ends."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def number(self, letter: str) -> Any:
        return self.numbers(letter, 1)[0]

    def numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{letter}") * count
        if self.place + size > len(self.data):
            raise struct.error
        found = struct.unpack_from(f"<{count}{letter}", self.data, self.place)
        self.place += size
        return found

    def text(self) -> str:
        length = self.number("Q")
        raw = self.data[self.place : self.place + length]
        if len(raw) != length:
            raise struct.error
        self.place += length
        return raw.decode("utf-8")

    def value(self) -> Any:
        kind = self.number("I")
        if kind != _ARRAY:
            return self.text() if kind == _TEXT else self.number(_letter(kind))
        of, count = self.number("I"), self.number("Q")
        if of == _TEXT:
            return [self.text() for _ in range(count)]
        return list(self.numbers(_letter(of), count))


def _letter(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"it holds values of the unknown type {kind}")
    return _NUMBERS[kind]


def _header(cursor: _Cursor) -> Header:
    cursor.place = len(MAGIC)
    version = cursor.number("I")
    if version not in VERSIONS:
        raise ValueError(f"it is in version {version} of GGUF; 2 and 3 are read, in little-endian order")
    n_tensors, n_keys = cursor.numbers("Q", 2)
    values: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.text()
        if key in values:
            raise ValueError(f"it sets {key} twice")
        values[key] = cursor.value()
    found = {}
    for _ in range(n_tensors):
        name = cursor.text()
        shape = cursor.numbers("Q", cursor.number("I"))
        found[name] = (shape, cursor.number("I"), cursor.number("Q"))
    alignment = values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    begin = -(-cursor.place // alignment) * alignment
    tensors = {name: TensorInfo(shape, kind, begin + at) for name, (shape, kind, at) in found.items()}
    return Header(values, tensors)
