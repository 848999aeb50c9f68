"""What a plan says, as data. It is made in `plan`."""

from dataclasses import dataclass

from compression_assets.planning.devices import Device

USABLE = 0.95
"""Of a device's memory: the rest is taken by its context and by fragmentation."""


@dataclass(frozen=True)
class Row:
    """One model (or the teacher's logits). size: bytes of its weights file, or of the logits. disk: of its directory.

    memory: peak bytes of the step that makes it, None if unknown; of each of its `gpus`. tokens: those trained on.
    """

    asset: str
    technique: str
    parent: str | None
    parameters: int | None
    size: int
    disk: int
    memory: int | None
    tokens: int
    flops: float
    seconds: float
    gpus: int = 1


@dataclass(frozen=True)
class Plan:
    """rows: base, teacher, logits, then every node of the prefix tree, parents first. finals: those that are measured.

    seconds: of everything, on the device. measuring: what of it evaluation takes. separate: seconds if every ordering
    were built by itself. exported: bytes of the files that engines load. disk: bytes of everything, intermediates
    included. misfits and notes: sentences.
    """

    study: str
    device: Device
    rows: tuple[Row, ...]
    finals: tuple[str, ...]
    base_size: int
    measuring: float
    separate: float
    exported: int
    misfits: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.measuring + sum(row.seconds for row in self.rows)

    @property
    def disk(self) -> int:
        return self.exported + sum(row.disk for row in self.rows)

    def row(self, asset: str) -> Row:
        return next(row for row in self.rows if row.asset == asset)
