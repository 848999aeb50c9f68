"""Tasks of lm-evaluation-harness on one model directory, as rows and samples like every other metric.

The harness is an optional dependency (`pip install lm_eval`), imported when a study names tasks.
"""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from compression_assets.errors import StudyError
from compression_assets.evaluation.rows import SCORE, MetricRow, Sample, mean_row
from compression_assets.store.fingerprints import file_sha256
from compression_assets.strict import Strict

SHARES = ("acc", "acc_norm", "exact_match", "em", "f1", "acc_mutual_info")
"""Metrics of the harness that lie in 0..1; the unit of any other (a perplexity, BLEU) is not known here."""

INSTALL = 'pip install "lm_eval>=0.4.13"'


class HarnessSettings(Strict):
    """tasks: names of the harness's tasks. include: a directory with task files (YAML) of one's own.

    limit: documents of each task, from its beginning; None: all. num_fewshot: None: each task's own.
    """

    tasks: list[str] = Field(min_length=1)
    include: str | None = None
    limit: PositiveInt | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    batch_size: PositiveInt = 8


def run_tasks(
    model_dir: Path, settings: HarnessSettings, seed: int, device: str = "cpu"
) -> tuple[list[MetricRow], list[Sample]]:
    """Each metric of each task as `<task>_<metric>`; samples where the metric is the mean over documents.

    Raises StudyError when the harness is not installed or does not know a task.
    """
    lm_eval = _harness()
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    from compression_assets.machine.precision import compute_dtype
    from compression_assets.weights.checkpoints import load_for_scoring

    manager = TaskManager(include_path=settings.include)
    if unknown := [task for task in settings.tasks if not manager.match_tasks([task])]:
        raise StudyError(
            f"evaluation.harness.tasks: lm_eval has no task {unknown[0]!r}; see: lm_eval ls tasks "
            "(or name the directory of your own in evaluation.harness.include)"
        )
    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)
    model = HFLM(
        pretrained=load_for_scoring(model_dir, device, compute_dtype(device)),
        tokenizer=tokenizer,
        batch_size=settings.batch_size,
        device=device,
        softmax_dtype="float32",  # in the weights' bfloat16, likelihoods would be off by a percent
    )
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=list(settings.tasks),
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return to_rows(found)


def to_rows(found: dict[str, Any]) -> tuple[list[MetricRow], list[Sample]]:
    """Rows and samples of what `lm_eval.simple_evaluate` returns."""
    rows: list[MetricRow] = []
    samples: list[Sample] = []
    for task, results in found["results"].items():
        higher = found["higher_is_better"].get(task, {})
        documents = found["samples"].get(task, [])
        for key, value in results.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            name = _name(task, metric, filtered)
            own = _samples(name, documents, metric, filtered)
            unit = SCORE if metric in SHARES else ""
            row = mean_row(name, own, higher_is_better=higher.get(metric), unit=unit)
            if own and row.value is not None and abs(row.value - value) < 1e-6:
                rows.append(row)
                samples += own
            else:  # no mean over documents: the harness's own figure, without an interval
                rows.append(MetricRow(name, float(value), unit, _count(found, task), higher.get(metric)))
    return rows, samples


def made_of(settings: HarnessSettings) -> dict[str, str]:
    """What else decides the figures: the harness's version and one's own task files, by their hashes."""
    try:
        found = {"lm_eval": version("lm_eval")}
    except PackageNotFoundError:
        found = {}
    if settings.include is None:
        return found
    folder = Path(settings.include)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return found | {str(file.relative_to(folder)): file_sha256(file) for file in files}


def _count(found: dict[str, Any], task: str) -> int:
    """Documents of a task, once each whatever the number of filters; of a group, those of its tasks."""
    tasks = found.get("group_subtasks", {}).get(task) or [task]
    return sum(len({document["doc_id"] for document in found["samples"].get(one, [])}) for one in tasks)


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise StudyError(
            f"evaluation.harness needs lm-evaluation-harness, which is not installed ({error.name}); run: {INSTALL}"
        ) from error
    return lm_eval


def _samples(name: str, documents: list[dict[str, Any]], metric: str, filtered: str) -> list[Sample]:
    return [
        Sample(name, str(document["doc_id"]), float(document[metric]))
        for document in documents
        if document.get("filter", filtered) == filtered and isinstance(document.get(metric), int | float)
    ]


def _name(task: str, metric: str, filtered: str) -> str:
    parts = [task, metric] + ([] if filtered == "none" else [filtered])
    return re.sub(r"[^a-z0-9]+", "_", "_".join(parts).lower()).strip("_")
