"""Exporting a finished model: as a Hugging Face directory with a model card, or as a GGUF file.

Every export is loaded back and scored like any model of the study; one whose perplexity is another's is not kept, but
where weights were rounded once more, to the tensor type that was asked for: then both are told.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_assets.errors import StudyError
from compression_assets.reporting.database import up_to_date
from compression_assets.reporting.read import NothingMeasured, read_results
from compression_assets.store.artifact_store import ArtifactStore, Manifest
from compression_assets.strict import near_match
from compression_assets.study.model import Study
from compression_assets.study.names import DATASETS, model_key, relative_directory
from compression_assets.study.orderings import Node
from compression_assets.takeaway import llama_cpp
from compression_assets.takeaway.gguf_tensors import EXACT, TYPES, refuse_second_rounding
from compression_assets.takeaway.model_card import model_card
from compression_assets.takeaway.modelfile import write_modelfile
from compression_assets.weights.formats.grouped_integer import EVERY_LAYER, Int4
from compression_assets.weights.formats.layout import format_of

if TYPE_CHECKING:
    from compression_assets.text.datasets import TokenDataset

FORMATS = ("hf", "w4a16", "gguf", *(f"gguf:{kind}" for kind in TYPES))
"""hf: a Hugging Face directory. w4a16: the same, of a model in int4 only, by vLLM's name. gguf is gguf:bf16."""
EXPORTS = "exports"
TOLERANCE = 0.005
"""Relative difference of perplexity: bfloat16 sums in another order differ by some 0.1 %."""


@dataclass(frozen=True)
class Exported:
    """path: a directory or a GGUF file. Perplexities are on the study's evaluation set.

    engine: what llama.cpp made of a file, "" of a directory.
    """

    path: Path
    bytes: int
    before: float
    after: float
    engine: str = ""


def export(study: Study, root: Path, model: str, form: str, device: str = "cpu") -> Exported:
    """Export one built model of a study, final or intermediate, into <root>/exports. form: one of FORMATS.

    Raises StudyError when the study has no such model, it is not built, its format cannot be written, or what was
    written does not score as the original does.
    """
    if form not in FORMATS:
        raise StudyError(f"unknown export format {form!r}: {near_match(form, FORMATS)}")
    store = ArtifactStore(root)
    node = _node(study, model)
    lineage = _lineage(study, store, node)
    directory = root / relative_directory(model_key(node))
    kind = None if form in ("hf", "w4a16") else form.partition(":")[2] or "bf16"
    _refuse_format(study, node, directory, form, kind)
    target = root / EXPORTS / (model if kind is None else gguf_name(model, kind))
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".building-{target.name}.{os.getpid()}"
    try:
        if kind is None:
            _copy(directory, work, _card(study, root, node, lineage))
        else:
            from compression_assets.takeaway.gguf_file import write_gguf

            steps = " → ".join(str(step.technique or "base") for step in lineage)
            write_gguf(directory, work, f"{study.name} {model}", f"compression_assets, steps: {steps}", kind)
        before, after, engine = _checked(study, root, directory, work, kind, device)
        _replace(work, target)
    finally:
        _remove(work)
    if kind is not None:
        write_modelfile(directory, target)
    return Exported(target, _bytes(target), before, after, engine)


def gguf_name(model: str, kind: str) -> str:
    """Name of the file that a model is exported to in a tensor type."""
    return f"{model}.gguf" if kind == "bf16" else f"{model}.{kind}.gguf"


def _checked(
    study: Study, root: Path, directory: Path, work: Path, kind: str | None, device: str
) -> tuple[float, float, str]:
    """(Perplexity of the original, of what was written and loaded back, what llama.cpp made of a file).

    Raises StudyError where they are not those of one model.
    """
    with _loaded_back(directory, work, kind) as loaded:
        before, after = (_perplexity(study, root, one, device) for one in (directory, loaded))
        if kind in (None, *EXACT) and abs(after / before - 1) > TOLERANCE:
            raise StudyError(
                f"the export of {directory} was loaded back with perplexity {after:.4g} instead of {before:.4g}; "
                "it was not kept: report this, and use another format"
            )
        return before, after, "" if kind is None else _engine(root, loaded, work, after)


def _refuse_format(study: Study, node: Node, directory: Path, form: str, kind: str | None) -> None:
    """StudyError if a model's number format does not go into what was asked for."""
    stored = format_of(directory)
    if form == "w4a16" and not (isinstance(stored, Int4) and stored.targets == (EVERY_LAYER,)):
        raise StudyError(
            f"{node.key} is in {stored.title}, not all in int4, which w4a16 means: add a Q with kind: int4, or use hf"
        )
    if kind is not None:
        parent = study.nodes[node.path[:-1]].key if node.path else ""
        refuse_second_rounding(directory, stored, kind, parent)


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


def _card(study: Study, root: Path, node: Node, lineage: list[Manifest]) -> str:
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
    ordering = node.final.text if node.final else "base"
    metrics, confidence = _metrics(study, root, node.key)
    judge = study.evaluation.judge
    return model_card(node.key, ordering, study.name, lineage[0].metadata, steps, metrics, confidence, judge)


def _metrics(study: Study, root: Path, key: str) -> tuple[list[dict[str, Any]], str]:
    """What is known of a model as it is now, and the confidence of its intervals."""
    confidence = f"{100 * study.evaluation.statistics.confidence:g} %"
    database, _ = up_to_date(study, root)
    if not database.file.exists():
        return [], confidence
    try:
        results = read_results(study, root, database)
    except NothingMeasured:
        return [], confidence
    return list(results.metrics.get(key, {}).values()), confidence


def _copy(directory: Path, work: Path, card: str) -> None:
    """Everything that a loader reads; float32 masters and the manifest are the study's own business."""
    work.mkdir()
    for file in directory.iterdir():
        if file.is_file() and file.name != "manifest.json":
            shutil.copyfile(file, work / file.name)
    (work / "README.md").write_text(card)


@contextmanager
def _loaded_back(directory: Path, work: Path, kind: str | None) -> Iterator[Path]:
    """What was written as a model directory: itself, or what a study would read from the file. Tokens are compared."""
    if kind is None:
        yield work
        return
    from compression_assets.sources.models import GgufModel, fetch_model
    from compression_assets.takeaway.gguf_check import check_tokens, sample_texts

    loaded = work.with_name(work.name + ".loaded")
    try:
        fetch_model(GgufModel(kind="gguf", path=str(work)), loaded, loaded)
        texts = sample_texts(directory)
        check_tokens(directory, _tokens(loaded, texts), texts, "the file loaded back")
        yield loaded
    finally:
        _remove(loaded)


def _perplexity(study: Study, root: Path, directory: Path, device: str) -> float:
    from compression_assets.evaluation.perplexity import measure_perplexity

    size = study.evaluation.perplexity.batch_size
    return measure_perplexity(directory, _evaluation_set(root), size, device).perplexity


def _evaluation_set(root: Path) -> "TokenDataset":
    from compression_assets.text.datasets import TokenDataset

    asset = DATASETS["evaluation"]
    ArtifactStore(root).require(root / relative_directory(asset), asset, "export", verify=False)
    return TokenDataset.load(root / relative_directory(asset))


def _tokens(directory: Path, texts: list[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _engine(root: Path, directory: Path, file: Path, perplexity: float) -> str:
    """What llama.cpp makes of a file. directory: the same loaded back, with its perplexity."""
    from compression_assets.takeaway.gguf_check import check_in_llama_cpp

    dataset = _evaluation_set(root)
    longest = max(dataset.rows, key=lambda row: len(row.input_ids))
    said = check_in_llama_cpp(directory, file, list(longest.input_ids))
    if not llama_cpp.available():
        return said
    found = llama_cpp.measure(file, dataset)
    return (
        f"{said}; there (xllamacpp {found.version}, {found.threads} threads) perplexity {found.perplexity:.4f} "
        f"({found.perplexity / perplexity - 1:+.1%} to the file loaded back), "
        f"{found.prompt_speed:,.0f} tokens/s of a prompt, {found.generation_speed:,.0f} generated, first token after "
        f"{found.first_token:.2f} s, {found.resident / 2**20:,.0f} MiB resident"
    )


def _replace(work: Path, target: Path) -> None:
    _remove(target)
    work.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
