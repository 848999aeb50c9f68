"""Measuring one model directory that no study built, against a study's base and data; nothing is written."""

import tempfile
from pathlib import Path

from compression_assets.errors import StudyError, next_command
from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.study.model import Study
from compression_assets.study.names import BASE_MODEL, DATASETS, QUESTION_SET, relative_directory


def evaluate_directory(
    study: Study, root: Path, model: Path, downloads: Path, device: str
) -> list[MetricRow]:
    """Perplexity, size, and what the study asks of answers and of running text; with intervals.

    root: the study's directory, in which base model, evaluation set and question set are built. model: a Hugging Face
    directory with safetensors, in full precision, or one of this project's own, quantized or not.
    Raises StudyError when one of these is missing or cannot be used.
    """
    from compression_assets.evaluation.measure import measure
    from compression_assets.evaluation.statistics import with_intervals
    from compression_assets.evaluation.text_perplexity import measure_text
    from compression_assets.planning.fit import refuse_directory
    from compression_assets.sources.models import DirectoryModel, fetch_model
    from compression_assets.sources.texts import read_texts
    from compression_assets.weights.checkpoints import is_quantized

    base, data = (_built(root, study, asset) for asset in (BASE_MODEL, DATASETS["evaluation"]))
    if not model.is_dir():
        raise StudyError(f"{model} is no directory: give that of a model in the Hugging Face layout")
    with tempfile.TemporaryDirectory() as folder:
        directory = model
        if not is_quantized(model):
            directory = Path(folder) / "model"
            directory.mkdir()
            fetch_model(DirectoryModel(kind="directory", path=str(model)), directory, downloads)
        refuse_directory(study, str(model), directory)
        measured = measure(directory, base, data, study.evaluation, device)
        rows, samples = list(measured.rows), list(measured.samples)
        if study.evaluation.answers is not None:
            more_rows, more_samples = _of_answers(study, root, directory, base, downloads, device)
            rows, samples = rows + more_rows, samples + more_samples
        if study.evaluation.text is not None:
            texts = read_texts(study.evaluation.text.source, downloads)
            more_rows, more_samples = measure_text(directory, base, texts, study.evaluation.text, device)
            rows, samples = rows + more_rows, samples + more_samples
    return with_intervals(rows, samples, study.evaluation.statistics, study.seed)


def _of_answers(
    study: Study, root: Path, directory: Path, base: Path, downloads: Path, device: str
) -> tuple[list[MetricRow], list[Sample]]:
    from compression_assets.evaluation.answer_scores import measure_answers, measure_answers_clarity
    from compression_assets.evaluation.answering import answer_questions
    from compression_assets.text.questions import read_question_set

    settings, clarity = study.evaluation.answers, study.evaluation.clarity
    assert settings is not None
    questions = read_question_set(_built(root, study, QUESTION_SET))
    answered = answer_questions(
        directory, questions, settings, study.seed, device, template_settings=study.data
    )
    rows, samples = measure_answers(answered.answers)
    rows, samples = [*answered.rows(), *rows], [*answered.samples(), *samples]
    if clarity is not None and clarity.fluency_model == "base":
        found = measure_answers_clarity(answered.answers, clarity, BASE_MODEL, base, downloads, device)
        rows, samples = rows + found[0], samples + found[1]
    return rows, samples


def _built(root: Path, study: Study, asset: str) -> Path:
    directory = artifacts_of(root).local(root / relative_directory(asset), asset)
    if directory is None:
        raise StudyError(
            f"study {study.name} has no {asset} yet; make it with: {next_command('run', '--select', f'*{asset}')}"
        )
    return directory
