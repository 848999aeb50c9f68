"""The plan of a study: what every model will weigh and take, and what does not fit. Printing is in `summary`."""

from pathlib import Path

from compression_assets.planning import work
from compression_assets.planning.costs import REFERENCE, expected_seconds, scaled
from compression_assets.planning.devices import CPU, Device
from compression_assets.planning.exported import gguf_bytes
from compression_assets.planning.models import known_models
from compression_assets.planning.remarks import misfits, notes
from compression_assets.planning.rows import Plan, Row
from compression_assets.planning.subject import Subject
from compression_assets.sources.models import HubModel
from compression_assets.study.model import CorrectedTeacher, Study
from compression_assets.study.names import (
    BASE_MODEL,
    DATASETS,
    TEACHER_LOGITS,
    TEACHER_MODEL,
    model_key,
)
from compression_assets.study.orderings import Node, StepPath
from compression_assets.study.places import storage_root, study_root
from compression_assets.techniques.finetuning.predict import predict_finetuning
from compression_assets.training.work import scoring_flops
from compression_assets.weights import shapes
from compression_assets.weights.formats.bf16 import FP32
from compression_assets.weights.formats.layout import everywhere
from compression_assets.weights.shapes import Config

TOKENIZER_BYTES = 72
"""Bytes of tokenizer files for an entry of the vocabulary: 3.5 MB of SmolLM2's 49,152, 11 MB of Qwen2.5's 151,936."""
STEP_OVERHEAD = {"cpu": 2.0, "cuda": 25.0}
"""Seconds of a step besides work and files; on CUDA each has a process that imports torch."""
FINER_DTYPES = ("float32", "float16")
"""Releases whose digits are kept in masters."""


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


class _Planner(Subject):
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
            misfits=tuple(misfits(self, rows)),
            notes=tuple(notes(self)),
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
            memory=self.logits_memory(self.teacher_gpus),
            gpus=self.teacher_gpus,
            tokens=0,
            flops=flops,
            seconds=flops / self.context.scoring + self._overhead(2 * size + shapes.file_bytes(self.teacher)),
        )
        return [self._teacher_row(), logits]

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
