"""Which number formats there are: those of this package and those that others bring. Classes are imported late."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from compression_assets.errors import StudyError
from compression_assets.strict import near_match
from compression_assets.weights.formats.format import Format

FORMATS: dict[str, str] = {
    "bf16": "compression_assets.weights.formats.bf16:BF16",
    "nf4": "compression_assets.weights.formats.nf4:NF4",
    "fp4": "compression_assets.weights.formats.fp4:FP4",
    "int8": "compression_assets.weights.formats.int8:Int8",
    "int4": "compression_assets.weights.formats.grouped_integer:Int4",
    "int8_grouped": "compression_assets.weights.formats.grouped_integer:Int8Grouped",
}
GROUP = "compression_assets.formats"
"""Entry points of other packages: a name -> "module:Class"."""


@cache
def registered() -> dict[str, str]:
    """Name -> "module:Class" of every format. Raises StudyError where two packages use one name."""
    found = dict(FORMATS)
    for entry in entry_points(group=GROUP):
        if found.setdefault(entry.name, entry.value) != entry.value:
            raise StudyError(
                f"the number format {entry.name!r} is brought by both {found[entry.name]} and {entry.value}: "
                "uninstall one of the two packages"
            )
    return found


def format_class(name: str) -> type[Format]:
    """The class of a format. Raises StudyError for an unknown name, with the near match or the names there are."""
    if name not in registered():
        raise StudyError(f"unknown number format '{name}': {near_match(name, registered())}")
    module, _, class_name = registered()[name].partition(":")
    found: type[Format] = getattr(import_module(module), class_name)
    if found.name != name:
        raise TypeError(f"{registered()[name]} is registered as {name!r}, its own name is {found.name!r}")
    return found


def quantizing_formats() -> list[str]:
    """Names of the formats of fewer bits than full precision."""
    return [name for name in registered() if not format_class(name).full_precision]


def make_format(name: str, **options: Any) -> Format:
    """A format with those of the options that it has. Raises StudyError as `format_class`."""
    made = format_class(name)
    known = {field.name for field in fields(made)}  # type: ignore[arg-type]
    return made(**{option: value for option, value in options.items() if option in known})


def formats_in(quantization: Mapping[str, Any]) -> list[Format]:
    """The formats that a `quantization_config` describes: one, or several that share out the weights among them.

    Raises StudyError when no registered format knows it.
    """
    found = [
        one for name in registered() if (one := format_class(name).from_config(quantization)) is not None
    ]
    if not found:
        method = quantization.get("quant_method", "no method")
        raise StudyError(
            f"the quantization ({method}) in config.json is in no known number format; known: "
            f"{', '.join(registered())}. Use the model's full-precision weights, or install the package of its format"
        )
    return found
