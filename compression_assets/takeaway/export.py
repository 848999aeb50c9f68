"""Exporting a finished model: as a Hugging Face directory with a model card, or as a GGUF file.

Every export is loaded back and scored like any model of the study; one whose perplexity is another's is not kept, but
where weights were rounded once more, to the tensor type that was asked for: then both are told.
"""

import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError, next_command
from compression_assets.evaluation.engines import llama_cpp
from compression_assets.evaluation.engines.settings import DIRECTORIES, FORMATS
from compression_assets.reporting.current import another_recipe
from compression_assets.reporting.database import up_to_date
from compression_assets.reporting.read import NothingMeasured, Results, read_results
from compression_assets.reporting.serving import served_table
from compression_assets.store.artifact_store import ArtifactStore, Manifest
from compression_assets.store.shared_artifacts import artifacts_of
from compression_assets.strict import near_match
from compression_assets.study.model import Study
from compression_assets.study.names import DATASETS, model_key, relative_directory
from compression_assets.study.orderings import Node
from compression_assets.takeaway.gguf_export import loaded_back, write_for_serving
from compression_assets.takeaway.model_card import model_card
from compression_assets.weights.checkpoints import FREED
from compression_assets.weights.files import NAMED_TEMPLATES
from compression_assets.weights.formats.gguf_types import EXACT, GgufForm, gguf_form, second_rounding
from compression_assets.weights.formats.grouped_integer import EVERY_LAYER, Int4
from compression_assets.weights.formats.layout import format_of

if TYPE_CHECKING:
    from compression_assets.text.datasets import TokenDataset

EXPORTS = "exports"
TOLERANCE = 0.005
"""Relative difference of perplexity: bfloat16 sums in another order differ by some 0.1 %."""


@dataclass(frozen=True)
class Exported:
    """path: a directory or a GGUF file. Perplexities are on the study's evaluation set.

    card: the model card, which a directory has as its README.md. engine: what llama.cpp made of a file, "" of a
    directory.
    """

    path: Path
    bytes: int
    before: float
    after: float
    card: str
    engine: str = ""


def export(
    study: Study,
    root: Path,
    model: str,
    form: str,
    device: str = "cpu",
    *,
    embeddings: str | None = None,
    importance: bool = False,
) -> Exported:
    """Export one built model of a study, final or intermediate, into <root>/exports.

    form: one of FORMATS; hf is a Hugging Face directory, w4a16 the same of a model in int4 only, gguf is gguf:bf16.
    embeddings, importance: of GGUF files, as in `GgufForm`.
    Raises StudyError when the study has no such model, it is not built, its format cannot be written, or what was
    written does not score as the original does.
    """
    if form not in FORMATS:
        raise StudyError(f"unknown export format {form!r}: {near_match(form, FORMATS)}")
    if form in DIRECTORIES and (embeddings or importance):
        raise StudyError(f"--embeddings and --imatrix are of GGUF files, and the format is {form}")
    file_form = None if form in DIRECTORIES else gguf_form(form, embeddings, importance)
    store = artifacts_of(root)
    node = _node(study, model)
    lineage = _lineage(study, store, node)
    if why := another_recipe(study, node.path, {str(relative_directory(one.asset)): one for one in lineage}):
        raise StudyError(f"{model} is of an earlier state of the study: {why}; run: {next_command('run')}")
    directory = root / relative_directory(model_key(node))
    _refuse_format(study, node, directory, form, file_form)
    name = node.key if file_form is None else gguf_name(node.key, file_form)
    card = _card(study, root, node, lineage, "transformers" if file_form is None else "gguf")
    # In a folder of its own until it is whole: what lies beside a file belongs to it.
    work = root / EXPORTS / f".building-{name}.{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    try:
        if file_form is None:
            _copy(directory, work / name, card)
        else:
            calibration = _dataset(root, "calibration") if file_form.importance else None
            title = f"{study.name} {node.key}"
            write_for_serving(directory, work / name, title, steps_of(lineage), file_form, calibration)
        before, after, engine = _checked(study, root, directory, work / name, file_form, device)
        for made in work.iterdir():
            _replace(made, root / EXPORTS / made.name)
    finally:
        shutil.rmtree(work)
    target = root / EXPORTS / name
    return Exported(target, _bytes(target), before, after, card, engine)


def gguf_name(model: str, form: GgufForm) -> str:
    """Name of the file that a model is exported to."""
    return f"{model}.gguf" if form == GgufForm() else f"{model}.{form.name}.gguf"


def steps_of(lineage: list[Manifest]) -> str:
    """What a file says about how its model was made."""
    return f"compression_assets, steps: {' → '.join(str(step.technique or 'base') for step in lineage)}"


def _checked(
    study: Study, root: Path, directory: Path, work: Path, form: GgufForm | None, device: str
) -> tuple[float, float, str]:
    """(Perplexity of the original, of what was written and loaded back, what llama.cpp made of a file).

    Raises StudyError where they are not those of one model.
    """
    with nullcontext(work) if form is None else loaded_back(directory, work) as loaded:
        before, after = (_perplexity(study, root, one, device) for one in (directory, loaded))
        if (form is None or form.kind in EXACT) and abs(after / before - 1) > TOLERANCE:
            raise StudyError(
                f"the export of {directory} was loaded back with perplexity {after:.4g} instead of {before:.4g}; "
                "it was not kept: report this, and use another format"
            )
        return before, after, "" if form is None else _engine(root, loaded, work, after)


def _refuse_format(study: Study, node: Node, directory: Path, form: str, gguf: GgufForm | None) -> None:
    """StudyError if a model's number format does not go into what was asked for."""
    stored = format_of(directory)
    if form == "w4a16" and not (isinstance(stored, Int4) and stored.targets == (EVERY_LAYER,)):
        what = "in a mixture of formats" if isinstance(stored, Int4) else f"in {stored.title}"
        raise StudyError(
            f"{node.key} is {what}, not all in int4, which w4a16 means: add a Q with kind: int4, or use hf"
        )
    if gguf is not None:
        parent = study.nodes[node.path[:-1]].key if node.path else ""
        if reason := second_rounding(str(directory), stored, gguf.kind, parent):
            raise StudyError(reason)


def _node(study: Study, model: str) -> Node:
    nodes = {node.key: node for node in study.nodes.values()}
    key = model.removeprefix("final_").removesuffix("_model") if model not in nodes else model
    if key not in nodes:
        raise StudyError(f"study {study.name} has no model {model!r}: {near_match(model, nodes)}")
    return nodes[key]


def _lineage(study: Study, store: ArtifactStore, node: Node) -> list[Manifest]:
    found = []
    for length in range(len(node.path) + 1):
        asset = model_key(study.nodes[node.path[:length]])
        last = length == len(node.path)
        found.append(store.require(store.root / relative_directory(asset), asset, "export", verify=last))
    return found


def _card(study: Study, root: Path, node: Node, lineage: list[Manifest], library: str) -> str:
    steps: list[dict[str, Any]] = [
        {
            name: getattr(step, name)
            for name in (
                "asset",
                "technique",
                "seed",
                "tokens_seen",
                "seconds",
                "device",
                "data_version",
                "recipe",
            )
        }
        for step in lineage
    ]
    ordering = node.final.text if node.final else "-".join(node.path) or "base"
    results = _results(study, root)
    metrics = list(results.metrics.get(node.key, {}).values()) if results else []
    confidence = f"{100 * study.evaluation.statistics.confidence:g} %"
    about = lineage[0].metadata
    judge = study.evaluation.judge
    served = served_table(results, of=node.path) if results else None
    return model_card(
        node.key, ordering, study.name, about, steps, metrics, confidence, judge, served, library
    )


def _results(study: Study, root: Path) -> Results | None:
    """What is known of the study as it is now; None while nothing is."""
    database, _ = up_to_date(study, root)
    try:
        return read_results(study, root, database) if database.file.exists() else None
    except NothingMeasured:
        return None


def _copy(directory: Path, work: Path, card: str) -> None:
    """Everything that a loader reads; float32 masters and the manifest are the study's own business."""
    work.mkdir()
    for file in directory.iterdir():
        if file.is_file() and file.name not in ("manifest.json", FREED):
            shutil.copyfile(file, work / file.name)
    if (directory / NAMED_TEMPLATES).is_dir():
        shutil.copytree(directory / NAMED_TEMPLATES, work / NAMED_TEMPLATES)
    (work / "README.md").write_text(card)


def _perplexity(study: Study, root: Path, directory: Path, device: str) -> float:
    from compression_assets.evaluation.perplexity import measure_perplexity

    size = study.evaluation.perplexity.batch_size
    return measure_perplexity(directory, _dataset(root, "evaluation"), size, device).perplexity


def _dataset(root: Path, split: str) -> "TokenDataset":
    from compression_assets.text.datasets import TokenDataset

    asset = DATASETS[split]
    return TokenDataset.load(artifacts_of(root).needed(root / relative_directory(asset), asset, "export"))


def _engine(root: Path, directory: Path, file: Path, perplexity: float) -> str:
    """What llama.cpp makes of a file. directory: the same loaded back, with its perplexity."""
    from compression_assets.takeaway.gguf_check import check_in_llama_cpp

    dataset = _dataset(root, "evaluation")
    longest = max(dataset.rows, key=lambda row: len(row.input_ids))
    said = check_in_llama_cpp(directory, file, list(longest.input_ids))
    if not llama_cpp.available():
        return said
    found = llama_cpp.measure(file, dataset)
    alone = found.timed[0]
    return (
        f"{said}; there ({found.version}, {found.threads} threads) perplexity {found.perplexity:.4f} "
        f"({found.perplexity / perplexity - 1:+.1%} to the file loaded back), "
        f"{median(alone.prompt_speeds):,.0f} tokens/s of a prompt, "
        f"{median(alone.generation_speeds):,.0f} generated, first token after {median(alone.prompt):.2f} s, "
        f"{found.resident / 2**20:,.0f} MiB resident"
    )


def _replace(work: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    work.replace(target)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
