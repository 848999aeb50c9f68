"""What a plan says in sentences: what does not fit, and what a reader has to know of the figures."""

from dataclasses import replace

from compression_assets.errors import StudyError
from compression_assets.planning import work
from compression_assets.planning.devices import GIB
from compression_assets.planning.gpus import enough
from compression_assets.planning.rows import USABLE, Row
from compression_assets.planning.steps import Predictions
from compression_assets.planning.subject import Subject
from compression_assets.planning.widths import width_notes
from compression_assets.study.model import CorrectedTeacher
from compression_assets.study.names import DATASETS, TEACHER_LOGITS, TEACHER_MODEL, model_key
from compression_assets.study.orderings import Node
from compression_assets.techniques.finetuning.predict import predict_finetuning
from compression_assets.techniques.registry import technique
from compression_assets.training.memory import optimizer_bytes
from compression_assets.training.schedule import TrainingRecipe
from compression_assets.weights.formats.gguf_types import LARGE_BLOCK


def misfits(about: Subject, rows: tuple[Row, ...]) -> list[str]:
    """A sentence for each amount of memory that the device does not have, with the steps that need it."""
    limit = about.device.memory * USABLE
    too_large: dict[int, list[Row]] = {}
    for row in rows:
        if row.memory is not None and row.memory > limit:
            too_large.setdefault(row.memory, []).append(row)
    return [_misfit(about, needed, members) for needed, members in sorted(too_large.items(), reverse=True)]


def _misfit(about: Subject, needed: int, rows: list[Row]) -> str:
    names = ", ".join(row.asset for row in rows)
    found = f"{names}: {needed / GIB:.1f} GiB, and {about.device.name} has {about.device.memory / GIB:.0f}"
    if more := enough(lambda gpus: _memory_of(about, rows[0].asset, gpus), about.device.memory * USABLE):
        key = "teacher_gpus" if rows[0].asset == TEACHER_LOGITS else "gpus"
        found += f" (training.{key}: {more[0]} takes {more[1] / GIB:.1f} GiB of each)"
    if not rows[0].tokens or rows[0].parameters is None:
        return found
    training = _training_of(about, rows[0].asset)
    if training is None:
        return found
    state = optimizer_bytes(training) * rows[0].parameters / GIB
    name = "fp32 AdamW" if training.optimizer == "adamw" else training.optimizer
    ways = [
        *(["optimizer: adamw_8bit (10 bytes a parameter for 16)"] if training.optimizer == "adamw" else []),
        *([] if training.gradient_checkpointing else ["gradient_checkpointing: true"]),
        *(["a smaller batch_size"] if training.batch_size > 1 else []),
    ]
    found += f"; masters, gradients and moments of {name} are {state:.0f} GiB"
    return f"{found}: write {', or '.join(ways)}" if ways else found


def _training_of(about: Subject, asset: str) -> TrainingRecipe | None:
    """By what a model is trained; None of a step that trains nothing."""
    if asset == TEACHER_MODEL:
        return about.study.teacher.finetune if isinstance(about.study.teacher, CorrectedTeacher) else None
    node = _node(about, asset)
    return None if node is None else _training_in(about, node)


def _training_in(about: Subject, node: Node) -> TrainingRecipe | None:
    recipe = None if node.step is None else about.study.recipe(node.step)
    for one in (recipe, getattr(recipe, "finetune", None)):
        if isinstance(one, TrainingRecipe):
            return one
    return None


def _node(about: Subject, asset: str) -> Node | None:
    return next((node for node in about.study.nodes.values() if model_key(node) == asset), None)


def _memory_of(about: Subject, asset: str, gpus: int) -> int | None:
    """Peak bytes of a step on each of so many GPUs; None where that is not known or it cannot have them."""
    if about.device.kind != "cuda":
        return None
    if asset == TEACHER_LOGITS:
        return about.logits_memory(gpus)
    study, context = about.study, replace(about.context, gpus=gpus)
    if asset == TEACHER_MODEL:
        assert isinstance(study.teacher, CorrectedTeacher)
        return predict_finetuning(about.base, study.teacher.finetune, context, DATASETS["teacher"]).memory
    node = _node(about, asset)
    assert node is not None
    try:
        if technique(node.technique or "").gpus(study.recipe(node.step or ""), gpus) == gpus:
            return Predictions(study, about.base, context).of(node).memory
    except StudyError:  # its recipe cannot be shared
        return None
    return None


def notes(about: Subject) -> list[str]:
    """Where the figures come from, and what they leave out."""
    assumed = [split for split, volume in about.volumes.items() if not volume.measured]
    said = [about.device.why]
    if assumed:
        said.append(
            f"tokens of {', '.join(assumed)} are estimated: {work.CONTENT_SHARE:.0%} of a chat's tokens are "
            f"content, and a conversation fills {work.ROW_FILL:.0%} of max_length"
        )
    untold = [
        model_key(node) for node in about.study.nodes.values() if about.predictions.of(node).seconds is None
    ]
    if untold:
        said.append(
            f"the arithmetic of {', '.join(untold)} is not in the hours: its technique cannot tell it"
        )
    return [
        *said,
        *_pass_notes(about),
        *_width_notes(about),
        *about.study.warnings,
        "downloads are not in the hours",
    ]


def _pass_notes(about: Subject) -> list[str]:
    """Which steps take their rows in several passes, on a GPU."""
    if about.device.kind != "cuda":
        return []
    split: dict[int, list[str]] = {}
    for node in about.study.nodes.values():
        training = _training_in(about, node)
        if training is not None and training.gradient_accumulation > 1:
            rows = training.batch_size * training.gradient_accumulation
            split.setdefault(rows, []).append(str(node.step))
    return [
        f"{', '.join(sorted(set(steps)))}: batch_size {rows} with gradient_accumulation 1 is the same training, "
        "and faster on a GPU where it fits (benchmarks/results/gpu.md)"
        for rows, steps in split.items()
    ]


def _width_notes(about: Subject) -> list[str]:
    configs = {path: about.predictions.of(node).config for path, node in about.study.nodes.items()}
    names = {path: model_key(node) for path, node in about.study.nodes.items()}
    k_quants = [
        ordering.path
        for served, ordering in about.study.served
        if served.gguf is not None and served.gguf.row_multiple == LARGE_BLOCK
    ]
    return width_notes(
        {names[path]: config for path, config in configs.items()},
        {names[path]: configs[path] for path in k_quants},
    )
