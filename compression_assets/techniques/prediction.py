"""What is known before a step, and what a technique says the step will come to. Arithmetic on shapes; no weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from compression_assets.training.sharing import shared_speed
from compression_assets.training.teacher.shards import TeacherLogitsRecipe
from compression_assets.training.work import Volume
from compression_assets.weights.formats.format import Format
from compression_assets.weights.shapes import Config


@dataclass(frozen=True)
class StepContext:
    """Where a step will run, and what it will read.

    data: data asset -> its volume. max_length: tokens of the longest row. device: "cpu" or "cuda". training,
    scoring: FLOP/s that training and forward passes reach on it. compute_bytes: of a number that it computes
    with (2 for bfloat16). row_by_row: memory is asked for with one row in a forward pass, which training on
    CUDA falls back to. gpus: that share a training. teacher: config of the teacher, None where it is not known.
    """

    max_length: int
    data: Mapping[str, Volume] = field(default_factory=dict)
    device: str = "cpu"
    training: float = 1.0
    scoring: float = 1.0
    compute_bytes: int = 2
    row_by_row: bool = False
    gpus: int = 1
    teacher: Config | None = None
    teacher_logits: TeacherLogitsRecipe = field(default_factory=TeacherLogitsRecipe)

    def volume(self, asset: str) -> Volume:
        """The volume of a data asset; an empty one where only memory is asked for."""
        return self.data.get(asset, Volume(0, 0, 0))

    def trained_in(self, flops: float) -> float:
        """Seconds of a training, by all GPUs that share it."""
        return flops / (self.training * shared_speed(self.gpus))

    def rows(self, batch_size: int) -> int:
        """Rows in a forward pass."""
        return 1 if self.row_by_row else batch_size


@dataclass(frozen=True)
class Prediction:
    """What a step comes to.

    config: content of the new model's config.json, as far as it decides shapes and the number format of the weights.
    tokens: those trained on. flops: of training and forward passes. memory: peak bytes, libraries included.
    seconds: of its arithmetic; what reading and writing files takes is added by the plan. None: cannot be told, because
    the config states its sizes under other names or the technique does not say.
    """

    config: Config
    tokens: int = 0
    flops: float | None = 0.0
    memory: int | None = None
    seconds: float | None = 0.0

    @property
    def quantized(self) -> bool:
        return bool(self.config.get("quantization_config"))


def in_format(config: Config, form: Format) -> Config:
    """A config.json's content with the weights in another number format."""
    return {**config, "quantization_config": form.to_config()}
