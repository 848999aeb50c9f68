"""Which techniques there are. Nothing about how they work, and nothing heavy: a class is imported when asked for.

To add a technique: write one file in this package with a class like `Technique` below (its module imports no
torch at the top), and add one line to TECHNIQUES: the name that orderings use, in capitals, and "module:Class".
Orderings, study files, the asset graph and the tests of this registry pick it up from there.
"""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Protocol

from compression_assets.errors import StudyError
from compression_assets.store.reports import StepReport
from compression_assets.strict import Strict, near_match
from compression_assets.techniques.step import StepInputs

TECHNIQUES: dict[str, str] = {
    "KD": "compression_assets.techniques.distillation.technique:Distillation",
    "FT": "compression_assets.techniques.finetuning.technique:PlainFinetuning",
    "P": "compression_assets.techniques.pruning.technique:Pruning",
    "Q": "compression_assets.techniques.quantization.technique:Quantization",
    "D": "compression_assets.techniques.dequantization.technique:Dequantization",
}

NAME = re.compile(r"[A-Z][A-Z0-9]*")


class Technique(Protocol):
    """What a technique is: a class, never instantiated, that offers these as class attributes.

    needs_full_precision: cannot start from a quantized model; a dequantization is inserted before it.
    quantizes: leaves a quantized model. inputs: the data assets it reads, such as "teacher_logits"; a recipe with a
    property `reads` adds to them.
    checks: names of the checks that its reports always have.
    """

    name: str
    title: str
    Recipe: type[Strict]
    needs_full_precision: bool
    quantizes: bool
    inputs: tuple[str, ...]
    checks: tuple[str, ...]
    apply: Callable[[StepInputs], StepReport]


def technique(name: str) -> Technique:
    """The class of a technique, by its name in capitals.

    Raises:
        StudyError: there is none of that name; the sentence has the near match, or the names there are.
    """
    if name not in TECHNIQUES:
        raise StudyError(f"unknown technique '{name}': {near_match(name, TECHNIQUES)}")
    module, _, class_name = TECHNIQUES[name].partition(":")
    found: Technique = getattr(import_module(module), class_name)
    if found.name != name or not NAME.fullmatch(name):
        raise TypeError(f"TECHNIQUES lists {TECHNIQUES[name]} as {name!r}, its own name is {found.name!r}")
    return found


def techniques() -> dict[str, Technique]:
    """Every registered technique by name."""
    return {name: technique(name) for name in TECHNIQUES}
