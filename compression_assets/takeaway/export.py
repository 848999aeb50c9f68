"""Exporting a finished model: as a Hugging Face directory with a model card, or as a GGUF file.

Every export is loaded back and scored like any model of the study; one whose perplexity is another's is not kept.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compression_assets.errors import StudyError
from compression_assets.store.artifact_store import ArtifactStore, Manifest
from compression_assets.store.metrics_db import MetricsDatabase
from compression_assets.strict import near_match
from compression_assets.study.model import Study
from compression_assets.study.names import DATASETS, model_key, relative_directory
from compression_assets.study.orderings import Node
from compression_assets.takeaway.model_card import model_card

if TYPE_CHECKING:
    from compression_assets.text.datasets import TokenDataset

Format = Literal["hf", "gguf"]
EXPORTS = "exports"
TOLERANCE = 0.005
"""Relative difference of perplexity: bfloat16 sums in another order differ by some 0.1 %."""


@dataclass(frozen=True)
class Exported:
    """path: a directory (hf) or a file (gguf). Perplexities are on the study's evaluation set. engine: what llama.cpp
    made of a file, "" of a directory."""

    path: Path
    bytes: int
    before: float
    after: float
    engine: str = ""


def export(study: Study, root: Path, model: str, form: Format, device: str = "cpu") -> Exported:
    """Export one built model of a study, final or intermediate, into <root>/exports.

    Raises StudyError when the study has no such model, it is not built, its format cannot be written, or what was
    written does not score as the original does.
    """
    store = ArtifactStore(root)
    node = _node(study, model)
    lineage = _lineage(study, store, node)
    directory = root / relative_directory(model_key(node))
    target = root / EXPORTS / (model if form == "hf" else f"{model}.gguf")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".building-{target.name}.{os.getpid()}"
    try:
        if form == "hf":
            card = _card(study, root, node, lineage)
            _copy(directory, work, card)
        else:
            from compression_assets.takeaway.gguf_file import write_gguf

            steps = " → ".join(str(step.technique or "base") for step in lineage)
            write_gguf(directory, work, f"{study.name} {model}", f"compression_assets, steps: {steps}")
        before, after = _perplexities(study, root, directory, work, form, device)
        if abs(after / before - 1) > TOLERANCE:
            raise StudyError(
                f"the {form} export of {model} was loaded back with perplexity {after:.4g} instead of {before:.4g}; it "
                "was not kept: report this, and use another format"
            )
        engine = _engine(root, directory, work) if form == "gguf" else ""
        _replace(work, target)
    finally:
        _remove(work)
    return Exported(target, _bytes(target), before, after, engine)


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
    return model_card(node.key, ordering, study.name, lineage[0].metadata, steps, _metrics(root, node.key))


def _metrics(root: Path, key: str) -> list[dict[str, Any]]:
    database = MetricsDatabase(root / "compression.duckdb")
    if not database.file.exists():
        return []
    columns, rows = database.query(
        "SELECT count(*) FROM duckdb_tables() WHERE schema_name = 'metrics' AND table_name = ?", [key]
    )
    if not rows[0][0]:
        return []
    columns, rows = database.query(f'SELECT * FROM metrics."{key}" ORDER BY metric')
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _copy(directory: Path, work: Path, card: str) -> None:
    """Everything that a loader reads; float32 masters and the manifest are the study's own business."""
    work.mkdir()
    for file in directory.iterdir():
        if file.is_file() and file.name != "manifest.json":
            shutil.copyfile(file, work / file.name)
    (work / "README.md").write_text(card)


def _perplexities(
    study: Study, root: Path, directory: Path, work: Path, form: Format, device: str
) -> tuple[float, float]:
    """Of the original and of what was written, loaded back as a source of a study would be; tokens compared as well."""
    from compression_assets.evaluation.perplexity import measure_perplexity

    dataset = _evaluation_set(root)
    size = study.evaluation.perplexity.batch_size
    before = measure_perplexity(directory, dataset, size, device).perplexity
    if form == "hf":
        return before, measure_perplexity(work, dataset, size, device).perplexity
    from compression_assets.sources.models import GgufModel, fetch_model
    from compression_assets.takeaway.gguf_check import check_tokens, sample_texts

    loaded = work.with_name(work.name + ".loaded")
    try:
        fetch_model(GgufModel(kind="gguf", path=str(work)), loaded, loaded)
        texts = sample_texts(directory)
        check_tokens(directory, _tokens(loaded, texts), texts, "the file loaded back")
        return before, measure_perplexity(loaded, dataset, size, device).perplexity
    finally:
        _remove(loaded)


def _evaluation_set(root: Path) -> "TokenDataset":
    from compression_assets.text.datasets import TokenDataset

    asset = DATASETS["evaluation"]
    ArtifactStore(root).require(root / relative_directory(asset), asset, "export", verify=False)
    return TokenDataset.load(root / relative_directory(asset))


def _tokens(directory: Path, texts: list[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _engine(root: Path, directory: Path, file: Path) -> str:
    from compression_assets.takeaway.gguf_check import check_in_llama_cpp

    longest = max(_evaluation_set(root).rows, key=lambda row: len(row.input_ids))
    return check_in_llama_cpp(directory, file, list(longest.input_ids))


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
