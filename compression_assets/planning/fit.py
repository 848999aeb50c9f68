"""Whether the models of a study can go through what it asks of them: from config.json alone, before any work.

`check`, `plan`, `doctor` and `run` ask here, and the base model's asset once its config is on this disk.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from compression_assets.errors import StudyError
from compression_assets.planning.libraries import refuse_missing_libraries
from compression_assets.planning.models import config_of
from compression_assets.planning.steps import Predictions
from compression_assets.sources.models import DirectoryModel, ModelSource
from compression_assets.sources.paths import local_path
from compression_assets.study.model import CorrectedTeacher, ModelTeacher, Study
from compression_assets.study.names import BASE_MODEL, TEACHER_MODEL, relative_directory
from compression_assets.study.orderings import recipe_token
from compression_assets.techniques.prediction import StepContext
from compression_assets.training.refusal import of_teacher
from compression_assets.training.refusal import refusal as training
from compression_assets.training.sharing import unshared
from compression_assets.weights import architectures, shapes
from compression_assets.weights.architectures import LLAMA_LIKE, Config
from compression_assets.weights.files import tensor_headers
from compression_assets.weights.formats.gguf_types import GgufForm, misfit, refusal


def refuse_unfit(study: Study, downloads: Path, root: Path | None = None) -> list[str]:
    """Raise StudyError, one sentence with the key path, for a model that cannot go through its study.

    downloads, root: as for `make_plan`. Returns notes on models of which nothing is known before they are fetched.
    """
    refuse_missing_libraries(study)
    notes = []
    for key, source, asset in _models(study):
        built = None if root is None or asset is None else root / relative_directory(asset)
        config = _known(source, downloads, built)
        if config is None:
            notes.append(f"{key}: looked at when it is fetched, its config.json is not on this machine yet")
            continue
        directory = local_path(source.path) if isinstance(source, DirectoryModel) else None
        refuse_config(study, key, config, directory)
    return notes


def refuse_config(study: Study, key: str, config: Config, directory: Path | None = None) -> None:
    """The same for one model of the study, by its key: "base_model", "teacher.source", "external_models[0].source".

    directory: where its weights are, if they are on this machine: their shapes are held against the config's.
    """
    try:
        reasons = (
            architectures.not_a_text_model(config),
            too_long(study, config),
            *_of_use(study, key, config),
            _other_shapes(directory, config) if directory else None,
        )
    except StudyError as error:
        raise StudyError(f"{key}: {error}") from error
    if reason := next(filter(None, reasons), None):
        raise StudyError(f"{key}: {reason}")


def refuse_directory(study: Study, key: str, directory: Path) -> None:
    """The same for a model that has been fetched into a directory."""
    refuse_config(study, key, json.loads((directory / "config.json").read_text()))


def too_long(study: Study, config: Config) -> str | None:
    """Why a model cannot read the study's longest rows, or None."""
    reads = architectures.positions(config)
    if reads is None or study.data.max_length <= reads:
        return None
    return (
        f"data.max_length is {study.data.max_length:,}, but this model reads {reads:,} tokens (max_position_embeddings "
        "in its config.json): lower data.max_length"
    )


def _of_use(study: Study, key: str, config: Config) -> Iterator[str | None]:
    if key == "base_model":
        yield from _of_base(study, config)
    elif key == "teacher.source":
        yield of_teacher(config)


def _of_base(study: Study, config: Config) -> Iterator[str | None]:
    found = Predictions(study, architectures.standard(config), StepContext(max_length=study.data.max_length))
    for node in study.nodes.values():
        found.of(node)
        if node.step and (reason := unshared(config, study.gpus_of(node.step))):
            raise StudyError(f"{recipe_token(node.step)} has {study.training.gpus} GPUs: {reason}")
    for index, (served, ordering) in enumerate(study.served):
        if served.gguf is not None:
            reason = _no_gguf(served.gguf, found.of(study.nodes[ordering.path]).config)
            yield reason and f"evaluation.serving[{index}] cannot be written: {reason}"
    if study.distils and isinstance(study.teacher, CorrectedTeacher):
        yield training(config, None)


def _no_gguf(form: GgufForm, config: Config) -> str | None:
    """Why a model is not written to GGUF in a form, or None."""
    if reason := refusal(config):
        return f"{reason}: serve it as hf"
    hidden = config["hidden_size"]
    return misfit(form, hidden, (hidden, config["intermediate_size"], shapes.attention_width(config))) or None


def _models(study: Study) -> Iterator[tuple[str, ModelSource, str | None]]:
    """(Key path, source, asset) of the models that read the study's rows."""
    yield "base_model", study.base_model, BASE_MODEL
    if study.distils and isinstance(study.teacher, ModelTeacher):
        yield "teacher.source", study.teacher.source, TEACHER_MODEL
    for index, external in enumerate(study.external_models):
        yield f"external_models[{index}].source", external.source, None


def _known(source: ModelSource, downloads: Path, built: Path | None) -> Config | None:
    """The config of a model as transformers knows it, if it is on this machine."""
    try:
        config = config_of(source, downloads, built)
    except StudyError:
        return None
    # A GGUF file names its architecture in llama.cpp's words, and holds some of the sizes only.
    foreign = str(getattr(source, "path", getattr(source, "file", ""))).endswith(".gguf")
    return None if foreign and config.get("model_type") not in LLAMA_LIKE else config


def _other_shapes(directory: Path, config: Config) -> str | None:
    """Names a tensor of a directory that has another shape than config.json gives it, or None."""
    expected = {tensor.name: tensor.shape for tensor in shapes.tensors(config)}
    for name, header in tensor_headers(directory).items():
        shape = tuple(header["shape"])
        if shape != expected.get(name, shape):
            return (
                f"{name} in {directory} is {list(shape)}, but config.json asks for {list(expected[name])}: "
                "layers that differ in size, or a config and weights that do not belong together, are not handled"
            )
    return None
