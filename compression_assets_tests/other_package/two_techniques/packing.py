"""N: linear layers into nibbles."""

from typing import Any

from compression_assets.techniques.technique import Reads, Technique
from compression_assets.weights.formats.format import Format
from two_techniques.nibbles import Nibbles
from two_techniques.pack import pack


class Packing(Technique):
    """N: rounds to nibbles, and notes how many tensors the base had."""

    name = "N"
    title = "quantization to nibbles"
    quantizes = True
    checks = ("size_as_asked",)
    apply = staticmethod(pack)

    @classmethod
    def reads(cls, recipe: Any) -> Reads:
        return Reads(data=("calibration_set",), models={"first": lambda before: 0})

    @classmethod
    def leaves(cls, recipe: Any) -> Format:
        return Nibbles()
