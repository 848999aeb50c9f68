"""What a plan is about: a study and a device, with the shapes and token counts that follow from both."""

from pathlib import Path

from compression_assets.planning import memory, work
from compression_assets.planning.devices import Device
from compression_assets.planning.fit import refuse_unfit
from compression_assets.planning.models import config_of
from compression_assets.planning.steps import Predictions, data_volumes
from compression_assets.study.model import ModelTeacher, Study
from compression_assets.study.names import BASE_MODEL, TEACHER_MODEL, relative_directory
from compression_assets.techniques.prediction import StepContext
from compression_assets.weights.architectures import standard
from compression_assets.weights.shapes import Config


class Subject:
    """Arguments, and what it raises, as `plan.make_plan`."""

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

    def logits_memory(self, gpus: int) -> int | None:
        """Peak bytes on each of so many GPUs of writing the teacher's logits."""
        return memory.logits_memory(
            self.teacher,
            self.study.teacher_logits,
            max_length=self.study.data.max_length,
            device=self.device.kind,
            gpus=gpus,
        )
