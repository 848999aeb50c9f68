"""The plan of a study: what every model will weigh and take, and what does not fit. Printing is in `summary`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_assets.planning import memory, shapes, work
from compression_assets.planning.costs import expected_seconds
from compression_assets.planning.devices import CPU, DEFAULT_CPU_FLOPS, GIB, Device
from compression_assets.planning.models import config_of, known_models
from compression_assets.planning.shapes import Config, Storage
from compression_assets.sources.models import HubModel
from compression_assets.study.model import CorrectedTeacher, ModelTeacher, Study
from compression_assets.study.names import (
    BASE_MODEL,
    TEACHER_LOGITS,
    TEACHER_MODEL,
    model_key,
    relative_directory,
)
from compression_assets.study.orderings import Node, StepPath, technique_of
from compression_assets.study.places import storage_root, study_root
from compression_assets.techniques.pruning.technique import kept_width
from compression_assets.techniques.registry import technique

TOKENIZER_BYTES = 72
"""Bytes of tokenizer files for an entry of the vocabulary: 3.5 MB of SmolLM2's 49,152, 11 MB of Qwen2.5's 151,936."""
STEP_OVERHEAD = {"cpu": 2.0, "cuda": 25.0}
"""Seconds of a step besides work and files; on CUDA each has a process that imports torch."""
USABLE = 0.95
"""Of a device's memory: the rest is taken by its context and by fragmentation."""
FINER_DTYPES = ("float32", "float16")
"""Releases whose digits are kept in masters."""
REFERENCE = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model for which `costs` states seconds on 2 CPU cores."""


@dataclass(frozen=True)
class Row:
    """One model (or the teacher's logits). size: bytes of its weights file, or of the logits. disk: of its directory.

    memory: peak bytes of the step that makes it, None if unknown. tokens: those trained on.
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


@dataclass(frozen=True)
class Plan:
    """rows: base, teacher, logits, then every node of the prefix tree, parents first. finals: those that are measured.

    seconds: of everything, on the device. measuring: what of it evaluation takes. separate: seconds if every ordering
    were built by itself. disk: bytes of everything, intermediates included. misfits and notes: sentences.
    """

    study: str
    device: Device
    rows: tuple[Row, ...]
    finals: tuple[str, ...]
    base_size: int
    measuring: float
    separate: float
    misfits: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.measuring + sum(row.seconds for row in self.rows)

    @property
    def disk(self) -> int:
        return sum(row.disk for row in self.rows)

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
        self.base = config_of(study.base_model, downloads, built)
        self.teacher: Config = self.base
        if isinstance(study.teacher, ModelTeacher):
            built = None if root is None else root / relative_directory(TEACHER_MODEL)
            self.teacher = config_of(study.teacher.source, downloads, built)
        self.volumes = work.volumes(study, root)
        self.configs: dict[StepPath, Config] = {(): self.base}
        self.stored: dict[StepPath, tuple[Storage, bool]] = {(): ("bf16", True)}

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
            misfits=tuple(self._misfits(rows)),
            notes=tuple(self._notes()),
        )

    def _fetched(self, asset: str, config: Config) -> Row:
        size = shapes.file_bytes(config)
        finer = asset == BASE_MODEL and (config.get("dtype") or config.get("torch_dtype")) in FINER_DTYPES
        masters = shapes.file_bytes(config, "fp32") if finer else 0
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
            seconds=self._seconds(0.0, 1.0, 2 * disk),
        )

    def _teaching(self) -> list[Row]:
        study = self.study
        distillation = self.volumes["distillation"]
        size = work.logits_bytes(study.teacher_logits, self.teacher, self.base, distillation)
        flops = work.scoring_flops(self.teacher, distillation)
        logits = Row(
            asset=TEACHER_LOGITS,
            technique="logits",
            parent=TEACHER_MODEL,
            parameters=None,
            size=size,
            disk=size,
            memory=memory.logits_memory(self.teacher, study.teacher_logits, **self._memory_arguments()),
            tokens=0,
            flops=flops,
            seconds=self._seconds(flops, self.device.scoring, 2 * size + shapes.file_bytes(self.teacher)),
        )
        return [self._teacher_row(), logits]

    def _teacher_row(self) -> Row:
        teacher = self.study.teacher
        if not isinstance(teacher, CorrectedTeacher):
            return self._fetched(TEACHER_MODEL, self.teacher)
        volume = self.volumes["teacher"]
        flops = work.training_flops(self.base, teacher.finetune, volume)
        size = shapes.file_bytes(self.base)
        return Row(
            asset=TEACHER_MODEL,
            technique="corrected",
            parent=BASE_MODEL,
            parameters=shapes.parameters(self.base),
            size=size,
            disk=size + TOKENIZER_BYTES * self.base["vocab_size"],
            memory=memory.step_memory(self.base, teacher.finetune, **self._memory_arguments()),
            tokens=int(volume.trained * work.epochs_of(teacher.finetune, volume)),
            flops=flops,
            seconds=self._seconds(flops, self.device.training, 2 * size),
        )

    def _step(self, node: Node) -> Row:
        assert node.parent is not None and node.step is not None
        recipe = self.study.recipe(node.step)
        before = self.configs[node.parent]
        config = self._config_after(node, recipe)
        storage, double_quant = self._storage_after(node, recipe)
        self.configs[node.path], self.stored[node.path] = config, (storage, double_quant)
        tokens, training, scoring = self._work(node, recipe, before, config)
        size = shapes.file_bytes(config, storage, double_quant)
        masters = shapes.file_bytes(config, "fp32") if storage == "bf16" else 0
        read = shapes.file_bytes(before, *self.stored[node.parent])
        parent = self.study.nodes[node.parent]
        idle = work.BY_OUTPUT_IDLE if getattr(recipe, "reads", ()) else 1.0
        return Row(
            asset=model_key(node),
            technique=node.step,
            parent=model_key(parent),
            parameters=shapes.parameters(config),
            size=size,
            disk=size + masters + TOKENIZER_BYTES * config["vocab_size"],
            memory=memory.step_memory(before, recipe, **self._memory_arguments()),
            tokens=tokens,
            flops=training + scoring,
            seconds=self._seconds(training, self.device.training, read + size + masters)
            + self._seconds(scoring * idle, self.device.scoring, 0, overhead=False),
        )

    def _config_after(self, node: Node, recipe: Any) -> Config:
        config = self.configs[node.parent or ()]
        if node.technique != "P":
            return config
        width = kept_width(config["intermediate_size"], recipe.ratio, recipe.multiple_of)
        return {**config, "intermediate_size": width}

    def _storage_after(self, node: Node, recipe: Any) -> tuple[Storage, bool]:
        if technique(node.technique or "").quantizes:
            return recipe.kind, getattr(recipe, "double_quant", True)
        return "bf16", True

    def _work(self, node: Node, recipe: Any, before: Config, after: Config) -> tuple[int, float, float]:
        """(tokens trained on, FLOPs of training, FLOPs of forward passes) of a step."""
        if node.technique == "P":
            trained, volume = recipe.finetune, self.volumes["finetuning"]
            scoring = work.forward_flops(before, self.volumes["calibration"])
        elif "distillation_set" in technique(node.technique or "").inputs:
            trained, volume = recipe, self.volumes["distillation"]
            epochs = work.epochs_of(trained, volume) if getattr(recipe, "alpha", 0) > 0 else 0.0
            scoring = work.teacher_head_flops(self.study.teacher_logits, self.teacher, volume, epochs)
        elif getattr(recipe, "reads", ()):
            return 0, 0.0, work.by_output_flops(before, self.volumes["calibration"])
        else:
            return 0, 0.0, 0.0
        tokens = int(volume.trained * work.epochs_of(trained, volume))
        return tokens, work.training_flops(after, trained, volume), scoring

    def _seconds(self, flops: float, share: float, file_bytes: float, overhead: bool = True) -> float:
        fixed = STEP_OVERHEAD[self.device.kind] if overhead else 0.0
        return fixed + flops / (self.device.flops * share) + file_bytes / self.device.disk

    def _memory_arguments(self) -> dict[str, Any]:
        return {"max_length": self.study.data.max_length, "device": self.device.kind}

    def _measuring(self, rows: tuple[Row, ...]) -> float:
        """What `costs` expects of everything that is no model, scaled to this model and device."""
        made = {row.asset for row in rows}
        others = sum(seconds for asset, seconds in expected_seconds(self.study).items() if asset not in made)
        larger = shapes.linear_parameters(self.base) / shapes.linear_parameters(known_models()[REFERENCE])
        return others * larger * DEFAULT_CPU_FLOPS * 0.5 / (self.device.flops * self.device.scoring)

    def _separate(self, steps: dict[StepPath, Row], teaching: list[Row]) -> float:
        """Seconds of building each ordering from the base by itself, with the teacher run for each of its KD steps."""
        total = 0.0
        for ordering in self.study.parsed_orderings:
            for length in range(1, len(ordering.path) + 1):
                row = steps[ordering.path[:length]]
                total += row.seconds
                if technique(technique_of(row.technique)).inputs.count(TEACHER_LOGITS):
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
        if not rows[0].tokens or rows[0].parameters is None:
            return found
        state = 16 * rows[0].parameters / GIB
        return (
            f"{found}; masters, gradients and moments of fp32 AdamW are {state:.0f} GiB: write optimizer: adamw_8bit "
            "(10 bytes a parameter for 16) and gradient_checkpointing: true, or a smaller batch_size"
        )

    def _notes(self) -> list[str]:
        assumed = [split for split, volume in self.volumes.items() if not volume.measured]
        notes = [self.device.why]
        if assumed:
            notes.append(
                f"tokens of {', '.join(assumed)} are estimated: {work.CONTENT_SHARE:.0%} of a chat's tokens are "
                f"content, and a conversation fills {work.ROW_FILL:.0%} of max_length"
            )
        return [*notes, *self.study.warnings, "downloads are not in the hours"]
