"""The plan of a study: what every model will weigh and take, and what does not fit. Printing is in `summary`."""

from dataclasses import dataclass, replace
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.planning import memory, work
from compression_assets.planning.costs import REFERENCE, expected_seconds, scaled
from compression_assets.planning.devices import CPU, GIB, Device
from compression_assets.planning.exported import gguf_bytes
from compression_assets.planning.fit import refuse_unfit
from compression_assets.planning.gpus import enough
from compression_assets.planning.models import config_of, known_models
from compression_assets.planning.steps import Predictions, data_volumes
from compression_assets.planning.widths import width_notes
from compression_assets.sources.models import HubModel
from compression_assets.study.model import CorrectedTeacher, ModelTeacher, Study
from compression_assets.study.names import (
    BASE_MODEL,
    DATASETS,
    TEACHER_LOGITS,
    TEACHER_MODEL,
    model_key,
    relative_directory,
)
from compression_assets.study.orderings import Node, StepPath
from compression_assets.study.places import storage_root, study_root
from compression_assets.techniques.finetuning.predict import predict_finetuning
from compression_assets.techniques.prediction import StepContext
from compression_assets.techniques.registry import technique
from compression_assets.training.memory import optimizer_bytes
from compression_assets.training.schedule import TrainingRecipe
from compression_assets.training.work import scoring_flops
from compression_assets.weights import shapes
from compression_assets.weights.architectures import standard
from compression_assets.weights.formats.bf16 import FP32
from compression_assets.weights.formats.gguf_types import LARGE_BLOCK
from compression_assets.weights.formats.layout import everywhere
from compression_assets.weights.shapes import Config

TOKENIZER_BYTES = 72
"""Bytes of tokenizer files for an entry of the vocabulary: 3.5 MB of SmolLM2's 49,152, 11 MB of Qwen2.5's 151,936."""
STEP_OVERHEAD = {"cpu": 2.0, "cuda": 25.0}
"""Seconds of a step besides work and files; on CUDA each has a process that imports torch."""
USABLE = 0.95
"""Of a device's memory: the rest is taken by its context and by fragmentation."""
FINER_DTYPES = ("float32", "float16")
"""Releases whose digits are kept in masters."""


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


def make_plan(study: Study, device: Device, downloads: Path, root: Path | None = None) -> Plan:
    """Plan a study for a device. downloads: where hub models and wheels are kept; root: the study's directory.

    What `root` already holds (configs, prepared splits) is taken from there; nothing is downloaded or written.
    Raises StudyError when the shapes of a model are known nowhere, or a recipe cannot be applied to them.
    """
    return _Planner(study, device, downloads, root).plan()


def plan_here(study: Study, device: Device) -> Plan:
    """The plan of a study in this machine's storage."""
    return make_plan(study, device, storage_root() / ".downloads", study_root(study))


def default_device(study: Study) -> str:
    """The device that a plan is for unless one is named: the paper's card for a model from the hub, else the CPU."""
    return "a6000" if isinstance(study.base_model, HubModel) else CPU


class _Planner:
    def __init__(self, study: Study, device: Device, downloads: Path, root: Path | None) -> None:
        self.study, self.device = study, device
        built = None if root is None else root / relative_directory(BASE_MODEL)
        refuse_unfit(study, downloads, root)
        self.base = standard(config_of(study.base_model, downloads, built))
        self.teacher: Config = self.base
        if isinstance(study.teacher, ModelTeacher):
            built = None if root is None else root / relative_directory(TEACHER_MODEL)
            self.teacher = standard(config_of(study.teacher.source, downloads, built))
        self.volumes = work.volumes(study, root)
        cuda = device.kind == "cuda"
        self.gpus, self.teacher_gpus = (study.training.gpus, study.training.teacher_gpus) if cuda else (1, 1)
        self.context = StepContext(
            max_length=study.data.max_length,
            data=data_volumes(self.volumes),
            device=device.kind,
            training=device.flops * device.training,
            scoring=device.flops * device.scoring,
            teacher=self.teacher,
            teacher_logits=study.teacher_logits,
            gpus=self.gpus,
        )
        self.predictions = Predictions(study, self.base, self.context)

    def plan(self) -> Plan:
        base = self._fetched(BASE_MODEL, self.base)
        teaching = self._teaching() if self.study.distils else []
        steps = {path: self._step(node) for path, node in self.study.nodes.items() if node.parent is not None}
        rows = (base, *teaching, *steps.values())
        finals = [model_key(self.study.nodes[ordering.path]) for ordering in self.study.parsed_orderings]
        return Plan(
            study=self.study.name,
            device=self.device,
            rows=rows,
            finals=tuple(finals),
            base_size=base.size,
            measuring=self._measuring(rows),
            separate=self._separate(steps, teaching),
            exported=self._exported(),
            misfits=tuple(self._misfits(rows)),
            notes=tuple(self._notes()),
        )

    def _exported(self) -> int:
        total = 0
        for served, ordering in self.study.served:
            if served.gguf is not None:
                config = self.predictions.of(self.study.nodes[ordering.path]).config
                total += gguf_bytes(config, served.gguf) + TOKENIZER_BYTES * config["vocab_size"]
        return total

    def _fetched(self, asset: str, config: Config) -> Row:
        size = shapes.file_bytes(config)
        finer = asset == BASE_MODEL and (config.get("dtype") or config.get("torch_dtype")) in FINER_DTYPES
        masters = shapes.file_bytes(config, everywhere(FP32())) if finer else 0
        disk = size + masters + TOKENIZER_BYTES * config["vocab_size"]
        return Row(
            asset=asset,
            technique="fetched",
            parent=None,
            parameters=shapes.parameters(config),
            size=size,
            disk=disk,
            memory=None,
            tokens=0,
            flops=0.0,
            seconds=self._overhead(2 * disk),
        )

    def _teaching(self) -> list[Row]:
        study = self.study
        distillation = self.volumes["distillation"]
        size = work.logits_bytes(study.teacher_logits, self.teacher, self.base, distillation)
        flops = scoring_flops(self.teacher, distillation)
        logits = Row(
            asset=TEACHER_LOGITS,
            technique="logits",
            parent=TEACHER_MODEL,
            parameters=None,
            size=size,
            disk=size,
            memory=self._logits_memory(self.teacher_gpus),
            gpus=self.teacher_gpus,
            tokens=0,
            flops=flops,
            seconds=flops / self.context.scoring + self._overhead(2 * size + shapes.file_bytes(self.teacher)),
        )
        return [self._teacher_row(), logits]

    def _logits_memory(self, gpus: int) -> int | None:
        return memory.logits_memory(
            self.teacher,
            self.study.teacher_logits,
            max_length=self.study.data.max_length,
            device=self.device.kind,
            gpus=gpus,
        )

    def _teacher_row(self) -> Row:
        teacher = self.study.teacher
        if not isinstance(teacher, CorrectedTeacher):
            return self._fetched(TEACHER_MODEL, self.teacher)
        found = predict_finetuning(self.base, teacher.finetune, self.context, DATASETS["teacher"])
        size = shapes.file_bytes(self.base)
        return Row(
            asset=TEACHER_MODEL,
            technique="corrected",
            parent=BASE_MODEL,
            parameters=shapes.parameters(self.base),
            size=size,
            disk=size + TOKENIZER_BYTES * self.base["vocab_size"],
            memory=found.memory,
            gpus=self.gpus,
            tokens=found.tokens,
            flops=found.flops or 0.0,
            seconds=(found.seconds or 0.0) + self._overhead(2 * size),
        )

    def _step(self, node: Node) -> Row:
        assert node.parent is not None and node.step is not None
        parent = self.study.nodes[node.parent]
        found, before = self.predictions.of(node), self.predictions.of(parent)
        size = shapes.file_bytes(found.config)
        masters = 0 if found.quantized else shapes.file_bytes(found.config, everywhere(FP32()))
        return Row(
            asset=model_key(node),
            technique=node.step,
            parent=model_key(parent),
            parameters=shapes.parameters(found.config),
            size=size,
            disk=size + masters + TOKENIZER_BYTES * found.config["vocab_size"],
            memory=found.memory,
            gpus=self.study.gpus_of(node.step) if self.device.kind == "cuda" else 1,
            tokens=found.tokens,
            flops=found.flops or 0.0,
            seconds=(found.seconds or 0.0)
            + self._overhead(shapes.file_bytes(before.config) + size + masters),
        )

    def _overhead(self, file_bytes: float) -> float:
        """Seconds of a step besides its arithmetic."""
        return STEP_OVERHEAD[self.device.kind] + file_bytes / self.device.disk

    def _measuring(self, rows: tuple[Row, ...]) -> float:
        """What `costs` expects of everything that is no model, scaled to this model and device."""
        made = {row.asset for row in rows}
        larger = shapes.linear_parameters(self.base) / shapes.linear_parameters(known_models()[REFERENCE])
        others = {
            asset: seconds for asset, seconds in expected_seconds(self.study).items() if asset not in made
        }
        return sum(scaled(others, larger, self.context.scoring, self.device.kind).values())

    def _separate(self, steps: dict[StepPath, Row], teaching: list[Row]) -> float:
        """Seconds of building each ordering from the base by itself, with the teacher run for each of its KD steps."""
        total = 0.0
        paths = dict.fromkeys(ordering.path for ordering in self.study.parsed_orderings)
        for path in paths | dict.fromkeys(ordering.path for _, ordering in self.study.served):
            for length in range(1, len(path) + 1):
                row = steps[path[:length]]
                total += row.seconds
                if TEACHER_LOGITS in self.study.inputs_of(row.technique):
                    total += teaching[-1].seconds
        return total

    def _misfits(self, rows: tuple[Row, ...]) -> list[str]:
        """A sentence for each amount of memory that the device does not have, with the steps that need it."""
        limit = self.device.memory * USABLE
        too_large: dict[int, list[Row]] = {}
        for row in rows:
            if row.memory is not None and row.memory > limit:
                too_large.setdefault(row.memory, []).append(row)
        return [self._misfit(needed, members) for needed, members in sorted(too_large.items(), reverse=True)]

    def _misfit(self, needed: int, rows: list[Row]) -> str:
        names = ", ".join(row.asset for row in rows)
        found = f"{names}: {needed / GIB:.1f} GiB, and {self.device.name} has {self.device.memory / GIB:.0f}"
        if more := enough(lambda gpus: self._memory_of(rows[0].asset, gpus), self.device.memory * USABLE):
            key = "teacher_gpus" if rows[0].asset == TEACHER_LOGITS else "gpus"
            found += f" (training.{key}: {more[0]} takes {more[1] / GIB:.1f} GiB of each)"
        if not rows[0].tokens or rows[0].parameters is None:
            return found
        training = self._training_of(rows[0].asset)
        if training is None:
            return found
        state = optimizer_bytes(training) * rows[0].parameters / GIB
        name = "fp32 AdamW" if training.optimizer == "adamw" else training.optimizer
        ways = [
            *(
                ["optimizer: adamw_8bit (10 bytes a parameter for 16)"]
                if training.optimizer == "adamw"
                else []
            ),
            *([] if training.gradient_checkpointing else ["gradient_checkpointing: true"]),
            *(["a smaller batch_size"] if training.batch_size > 1 else []),
        ]
        found += f"; masters, gradients and moments of {name} are {state:.0f} GiB"
        return f"{found}: write {', or '.join(ways)}" if ways else found

    def _training_of(self, asset: str) -> TrainingRecipe | None:
        """By what a model is trained; None of a step that trains nothing."""
        if asset == TEACHER_MODEL:
            return self.study.teacher.finetune if isinstance(self.study.teacher, CorrectedTeacher) else None
        node = self._node(asset)
        return None if node is None else self._training_in(node)

    def _training_in(self, node: Node) -> TrainingRecipe | None:
        recipe = None if node.step is None else self.study.recipe(node.step)
        for one in (recipe, getattr(recipe, "finetune", None)):
            if isinstance(one, TrainingRecipe):
                return one
        return None

    def _node(self, asset: str) -> Node | None:
        return next((node for node in self.study.nodes.values() if model_key(node) == asset), None)

    def _memory_of(self, asset: str, gpus: int) -> int | None:
        """Peak bytes of a step on each of so many GPUs; None where that is not known or it cannot have them."""
        if self.device.kind != "cuda":
            return None
        if asset == TEACHER_LOGITS:
            return self._logits_memory(gpus)
        study, context = self.study, replace(self.context, gpus=gpus)
        if asset == TEACHER_MODEL:
            assert isinstance(study.teacher, CorrectedTeacher)
            return predict_finetuning(self.base, study.teacher.finetune, context, DATASETS["teacher"]).memory
        node = self._node(asset)
        assert node is not None
        try:
            if technique(node.technique or "").gpus(study.recipe(node.step or ""), gpus) == gpus:
                return Predictions(study, self.base, context).of(node).memory
        except StudyError:  # its recipe cannot be shared
            return None
        return None

    def _notes(self) -> list[str]:
        assumed = [split for split, volume in self.volumes.items() if not volume.measured]
        notes = [self.device.why]
        if assumed:
            notes.append(
                f"tokens of {', '.join(assumed)} are estimated: {work.CONTENT_SHARE:.0%} of a chat's tokens are "
                f"content, and a conversation fills {work.ROW_FILL:.0%} of max_length"
            )
        untold = [
            model_key(node) for node in self.study.nodes.values() if self.predictions.of(node).seconds is None
        ]
        if untold:
            notes.append(
                f"the arithmetic of {', '.join(untold)} is not in the hours: its technique cannot tell it"
            )
        return [
            *notes,
            *self._pass_notes(),
            *self._width_notes(),
            *self.study.warnings,
            "downloads are not in the hours",
        ]

    def _pass_notes(self) -> list[str]:
        """Which steps take their rows in several passes, on a GPU."""
        if self.device.kind != "cuda":
            return []
        split: dict[int, list[str]] = {}
        for node in self.study.nodes.values():
            training = self._training_in(node)
            if training is not None and training.gradient_accumulation > 1:
                rows = training.batch_size * training.gradient_accumulation
                split.setdefault(rows, []).append(str(node.step))
        return [
            f"{', '.join(sorted(set(steps)))}: batch_size {rows} with gradient_accumulation 1 is the same training, "
            "and faster on a GPU where it fits (benchmarks/results/gpu.md)"
            for rows, steps in split.items()
        ]

    def _width_notes(self) -> list[str]:
        configs = {path: self.predictions.of(node).config for path, node in self.study.nodes.items()}
        names = {path: model_key(node) for path, node in self.study.nodes.items()}
        k_quants = [
            ordering.path
            for served, ordering in self.study.served
            if served.gguf is not None and served.gguf.row_multiple == LARGE_BLOCK
        ]
        return width_notes(
            {names[path]: config for path, config in configs.items()},
            {names[path]: configs[path] for path in k_quants},
        )
