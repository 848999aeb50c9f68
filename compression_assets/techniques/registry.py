"""Which techniques there are. A class is imported when it is asked for.

To add one: write a class that extends `Technique` (technique.py says what it may state), and name it as
"module:Class" under the name that orderings use, in capitals: here, or from another package as an entry point of the
group `compression_assets.techniques`. Orderings, study files, the graph, the plan and the report find it there.
"""

import re
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from compression_assets.errors import StudyError
from compression_assets.strict import near_match
from compression_assets.techniques.technique import Technique

GROUP = "compression_assets.techniques"
TECHNIQUES: dict[str, str] = {
    "KD": "compression_assets.techniques.distillation:Distillation",
    "FT": "compression_assets.techniques.finetuning:PlainFinetuning",
    "P": "compression_assets.techniques.pruning:Pruning",
    "Q": "compression_assets.techniques.quantization:Quantization",
    "D": "compression_assets.techniques.dequantization:Dequantization",
    "QAD": "compression_assets.techniques.qad:QuantizationAwareDistillation",
}

NAME = re.compile(r"[A-Z][A-Z0-9]*")


def names() -> dict[str, str]:
    """Name -> "module:Class" of every technique, the project's own first.

    Raises StudyError when an installed package brings a name that is taken, or that no ordering could use.
    """
    found = dict(TECHNIQUES)
    for name, place in _from_packages():
        if name in found:
            raise StudyError(
                f"{place} and {found[name]} are both the technique {name}: uninstall one of them"
            )
        if not NAME.fullmatch(name):
            raise StudyError(
                f"{place} is registered as technique {name!r}: its name must be capitals and digits"
            )
        found[name] = place
    return found


def technique(name: str) -> type[Technique]:
    """The class of a technique, by its name in capitals.

    Raises:
        StudyError: there is none of that name (with the near match, or the names there are), or what an installed
            package registers under it is none.
    """
    places = names()
    if name not in places:
        raise StudyError(f"unknown technique '{name}': {near_match(name, places)}")
    return _loaded(name, places[name])


def techniques() -> dict[str, type[Technique]]:
    """Every registered technique by name."""
    return {name: technique(name) for name in names()}


@cache
def _from_packages() -> tuple[tuple[str, str], ...]:
    """Sorted, so that every process sees the same order."""
    return tuple(sorted({(entry.name, entry.value) for entry in entry_points(group=GROUP)}))


def _loaded(name: str, place: str) -> type[Technique]:
    module, _, class_name = place.partition(":")
    try:
        found = getattr(import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise StudyError(f"the technique {name} cannot be imported from {place}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Technique)):
        raise StudyError(f"{place}, registered as technique {name}, does not extend Technique")
    if found.name != name:
        raise StudyError(f"{place} is registered as technique {name}, its own name is {found.name!r}")
    for attribute in ("title", "apply", *(["leaves"] if found.quantizes else [])):
        if not any(attribute in vars(one) for one in found.__mro__[: found.__mro__.index(Technique)]):
            raise StudyError(f"{place}, the technique {name}, does not say its {attribute}; see Technique")
    return found
