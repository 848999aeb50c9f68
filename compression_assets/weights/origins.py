"""What the layers of a model were in the model that it was made from, where a step has cut, dropped or renumbered some.

Such a step leaves origins.json beside the weights. Without it a model's layers are taken for those of the same name.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "origins.json"


@dataclass(frozen=True)
class Cut:
    """Indices kept, in the new order: of the rows of some linear layers, and of the columns of others.

    Layers are named as in the new model, without ".weight".
    """

    kept: tuple[int, ...]
    rows_of: tuple[str, ...] = ()
    columns_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origins:
    """names: a module of the new model -> the module of the old one that it was, where the name is another.

    A name covers everything inside the module: where layers 1 and 2 went, "model.layers.1": "model.layers.3" is enough
    for what is layer 1 now.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def name(self, layer: str) -> str:
        """What a layer of the new model was called in the old one."""
        module, rest = layer, ""
        while module and module not in self.names:
            module, _, last = module.rpartition(".")
            rest = f".{last}{rest}"
        return self.names[module] + rest if module else layer


def write_origins(directory: Path, names: Mapping[str, str] | None = None, cuts: Iterable[Cut] = ()) -> None:
    """Say in a model directory what its layers were; see `Origins` and `Cut`."""
    content = {"names": dict(names or {}), "cuts": [asdict(cut) for cut in cuts]}
    (directory / FILE).write_text(json.dumps(content))


def read_origins(directory: Path) -> Origins | None:
    """None where the step that left the directory says nothing."""
    if not (directory / FILE).is_file():
        return None
    content = json.loads((directory / FILE).read_text())
    cuts = [Cut(**{name: tuple(values) for name, values in cut.items()}) for cut in content["cuts"]]
    return Origins(
        content["names"],
        {layer: cut.kept for cut in cuts for layer in cut.rows_of},
        {layer: cut.kept for cut in cuts for layer in cut.columns_of},
    )
