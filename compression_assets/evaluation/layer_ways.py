"""Which layer of an earlier model a layer of a later one was: followed through what each step in between says of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from compression_assets.weights.files import tensor_headers
from compression_assets.weights.origins import Origins, read_origins

Kept = tuple[int, ...] | None
"""Indices of rows or columns that a step has kept; None for all."""


class Incomparable(Exception):
    """A layer cannot be compared with what it was; the message says why."""


@dataclass(frozen=True)
class _Step:
    """before, after: shape of each tensor of the models around it. model: name of the later one."""

    model: str
    before: dict[str, list[int]]
    after: dict[str, list[int]]
    said: Origins | None

    def back(self, layer: str) -> tuple[str, Kept, Kept]:
        """(What a layer was called before the step, its rows kept, its columns kept)."""
        if self.said is None and self.before.keys() != self.after.keys():
            raise Incomparable(
                f"{self.model} has other layers than the model before it, and names no origins"
            )
        said = self.said or Origins()
        earlier, rows, columns = said.name(layer), said.rows.get(layer), said.columns.get(layer)
        was, now = self.before.get(f"{earlier}.weight"), self.after.get(f"{layer}.weight")
        if was is None or now != [_length(rows, was[0]), _length(columns, was[1])]:
            raise Incomparable(
                f"{self.model} has another shape here than the model before it, and no cut that explains it"
            )
        return earlier, rows, columns


class LayerWays:
    """The way from a chain of full-precision model directories' last layers back to the first's."""

    def __init__(self, models: Sequence[Path]) -> None:
        self._steps = list(_steps(models))

    def back(self, layer: str) -> tuple[str, list[tuple[Kept, Kept]]]:
        """(Its name in the first model, rows and columns kept by each step since, in order). Raises Incomparable."""
        cuts = []
        for step in reversed(self._steps):
            layer, rows, columns = step.back(layer)
            cuts.append((rows, columns))
        return layer, cuts[::-1]


def _steps(models: Sequence[Path]) -> Iterator[_Step]:
    shapes = [{name: about["shape"] for name, about in tensor_headers(model).items()} for model in models]
    for (_, model), (before, after) in zip(pairwise(models), pairwise(shapes), strict=True):
        yield _Step(model.name, before, after, read_origins(model))


def _length(kept: Kept, whole: int) -> int:
    return whole if kept is None else len(kept)
