"""One metrics asset a finished model: measured once into an artifact, then copied into DuckDB."""

import json
from typing import Any

import dagster as dg

from compression_assets.evaluation.rows import MetricRow, Sample
from compression_assets.graph.assets.artifact import Artifact, Workplace
from compression_assets.graph.assets.code import format_code
from compression_assets.graph.assets.data import split_input
from compression_assets.graph.assets.measured_asset import Measurement, measured_asset
from compression_assets.graph.assets.memory import of_scoring
from compression_assets.graph.assets.priority import MEASURE
from compression_assets.graph.resources.storage import StudyStorage
from compression_assets.store.artifact_store import ArtifactStore
from compression_assets.store.reports import Check, StepReport
from compression_assets.study.leaderboard_models import Subject, subjects
from compression_assets.study.model import Study
from compression_assets.study.names import (
    BASE_MODEL,
    DATASETS,
    TEACHER_LOGITS,
    TEACHER_MODEL,
    model_key,
    relative_directory,
)

PART = "metrics"
CHECK = "perplexity_below_uniform_guess"


def metrics_assets(study: Study) -> list[dg.AssetsDefinition]:
    """`metrics_<subject>` for every ordering of the study, the base included, and every external model."""
    return [_metrics_asset(study, subject) for subject in subjects(study)]


def _metrics_asset(study: Study, subject: Subject) -> dg.AssetsDefinition:
    model = subject.model
    data = DATASETS["evaluation"]
    artifact = Artifact(
        asset=subject.asset(PART),
        settings={"perplexity": study.evaluation.perplexity.model_dump(mode="json")},
        code=("compression_assets.evaluation.measure", *format_code(study, subject.path)),
        inputs=tuple(dict.fromkeys((model, BASE_MODEL, data))),
        parent=model,
        path=subject.path,
        warnings=(CHECK,),
        needs=of_scoring(model, study),
    )

    def measure(place: Workplace, storage: StudyStorage) -> tuple[list[MetricRow], list[Sample], StepReport]:
        from compression_assets.evaluation.measure import OTHER_TOKENIZER
        from compression_assets.evaluation.measure import measure as measure_model

        measured = measure_model(
            place.inputs[model],
            place.inputs[BASE_MODEL],
            place.inputs[data],
            study.evaluation,
            place.device,
            place.report,
        )
        perplexity = measured.perplexity
        if perplexity is None:
            better, detail, summary = True, OTHER_TOKENIZER, "no perplexity: another tokenizer"
        else:
            better, summary = perplexity < measured.vocabulary, f"perplexity {perplexity:.2f}"
            detail = f"{summary}, a uniform guess has {measured.vocabulary:,}"
        report = StepReport(
            checks=(Check(CHECK, better, detail, blocking=False),),
            metadata={"summary": summary, "precision": measured.precision},
        )
        return measured.rows, measured.samples, report

    measurement = Measurement(
        PART,
        PART,
        f"Perplexity, size and compression ratio of {model}",
        measure,
        priority=MEASURE,
        side_inputs=(split_input(study, "evaluation"),),
        lineage=lambda storage: lineage_rows(study, subject, storage.artifacts),
    )
    return measured_asset(study, subject, artifact, measurement)


def lineage_rows(study: Study, subject: Subject, store: ArtifactStore) -> list[dict[str, Any]]:
    """A row for every model on the way from the base to this one, and for the teacher of a KD step."""
    ordering = subject.ordering
    if ordering is None:
        return [_lineage_row(subject.model, subject.key, None, None, store)]
    nodes = [study.nodes[ordering.path[:length]] for length in range(len(ordering.path) + 1)]
    rows = []
    for node, parent in zip(nodes, [None, *nodes], strict=False):
        final = node.final.text if node.final else None
        rows.append(_lineage_row(model_key(node), node.key, parent.key if parent else None, final, store))
    if any(TEACHER_LOGITS in study.inputs_of(node.step) for node in nodes if node.step):
        rows.append(_lineage_row(TEACHER_MODEL, "teacher", None, None, store))
    return rows


def _lineage_row(
    asset: str, model: str, parent: str | None, ordering: str | None, store: ArtifactStore
) -> dict[str, Any]:
    directory = store.root / relative_directory(asset)
    manifest = store.require(directory, asset, asset, verify=False)
    return {
        "model": model,
        "asset": asset,
        "ordering": ordering,
        "parent": parent,
        "technique": manifest.technique,
        "step": len(manifest.path),
        "recipe": json.dumps(manifest.recipe),
        "recipe_fingerprint": manifest.recipe_fingerprint,
        "fingerprint": manifest.fingerprint,
        "data_version": manifest.data_version,
        "seed": manifest.seed,
        "tokens_seen": manifest.tokens_seen,
        "seconds": manifest.seconds,
        "peak_memory_mib": manifest.peak_memory_bytes / 2**20,
        "device": manifest.device,
        "path": str(directory),
        "created_at": manifest.created_at,
    }
